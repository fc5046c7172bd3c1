"""The Ray actors of a live run, each made inside its own process."""

from collections.abc import Awaitable, Callable
from functools import partial

from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agents.actor import HostActor
from agents.host import AgentHost
from allocator.actor import AllocatorActor
from cloud.actor import WorkerActor
from cloud.sockets import Accept
from cluster.live import here
from cluster.live.nodes import Layout
from cluster.live.other_nodes import OtherNodes
from cluster.live.parts import LiveParts
from cluster.live.placement import ALLOCATOR_CPUS, Placement, Spot
from cluster.live.ray_session import RaySession
from cluster.scenario.events import Part
from cluster.scenario.schema import AllocatorSettings, Scenario
from cluster.wiring import make_reception, make_worker
from netem.helper.client import LinkClient


class Pool:
    """Creates a scenario's actors; their `start` is for the caller to await.

    Attributes:
        others: the nodes beside this one, if any have actors of the run.
    """

    def __init__(
        self,
        scenario: Scenario,
        ray_session: RaySession,
        placement: Placement | Layout,
        link_path: str,
        others: OtherNodes | None = None,
    ) -> None:
        self._scenario = scenario
        self._ray = ray_session
        self._placement = placement
        self._link_path = link_path
        self.others = others

    def parts(self, client: LinkClient) -> LiveParts:
        """The parts of a run, none of which is there yet."""
        return LiveParts(client, self._scenario.host_of, self._scenario.cloud.workers)

    def create(self, part: Part, settings: AllocatorSettings | None = None) -> ActorHandle:
        """An actor for a worker, for a host (which goes by its first agent), or for the allocator of these settings."""
        if part.kind == "worker":
            return self._create_worker(part.number)
        if part.kind == "host":
            return self._create_host(self._scenario.host_of[part.number])
        assert settings is not None
        make = partial(here.open_allocator, self._scenario, settings, self._link_path)
        return self._ray.start(AllocatorActor, Spot(ALLOCATOR_CPUS, 0.0), make)

    def _create_worker(self, number: int) -> ActorHandle:
        s, spot = self._scenario, self._placement.worker(number)
        make, receive = partial(make_worker, s, models=True), partial(make_reception, s)
        listen: Callable[[], Awaitable[Accept]] = partial(here.listen, self._link_path, number)
        if self.others is not None and self.others.is_remote(spot):
            listen = self.others.listen(number)
        return self._ray.start(WorkerActor, spot, make, receive, listen)

    def _create_host(self, number: int) -> ActorHandle:
        s, spot = self._scenario, self._placement.host(number)
        open_host: Callable[[], Awaitable[AgentHost]] = partial(here.open_host, s, s.hosts[number], self._link_path)
        if self.others is not None and self.others.is_remote(spot):
            open_host = self.others.open_host(number)
        return self._ray.start(HostActor, spot, open_host)

    def elsewhere(self, part: Part) -> NodeAffinitySchedulingStrategy | None:
        """What puts a task on the node of a part, if that isn't this one."""
        if part.kind == "allocator":
            return None
        host = part.kind == "host"
        spot = (
            self._placement.host(self._scenario.host_of[part.number]) if host else self._placement.worker(part.number)
        )
        remote = self.others is not None and self.others.is_remote(spot)
        return self._ray.on(spot.node_id) if remote else None
