"""The Ray actors of a live run, each made inside its own process."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agents.actor import HostActor
from agents.host import AgentHost
from allocator.actor import AllocatorActor
from allocator.online.service import Allocator
from cloud.actor import WorkerActor
from cloud.sockets import Accept, accepting
from cluster.live.elsewhere import connected_host
from cluster.live.nodes import Layout
from cluster.live.other_nodes import OtherNodes
from cluster.live.parts import LiveParts, Process
from cluster.live.placement import ALLOCATOR_CPUS, Placement, Spot
from cluster.live.ray_session import RaySession
from cluster.scenario.events import Part
from cluster.scenario.schema import AllocatorSettings, Scenario
from cluster.wiring import make_allocator, make_reception, make_worker
from netem.helper.client import LinkClient

Created = list[tuple[Part, ActorHandle]]


class Pool:
    """Creates a scenario's actors; their `start` is for the caller to await."""

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
        self._others = others

    def parts(self, client: LinkClient, helper_pid: int) -> LiveParts:
        """The parts of a run, none of which is there yet."""
        s = self._scenario
        return LiveParts(client, helper_pid, s.host_of, s.cloud.workers)

    def create_missing(self, parts: LiveParts) -> list[tuple[list[Process | None], Created]]:
        """Actors for the workers that aren't there, then for the hosts; they come up side by side."""
        s, place = self._scenario, self._placement
        workers: Created = []
        for number in _missing(parts.workers):
            make, receive = partial(make_worker, s, models=True), partial(make_reception, s)
            spot = place.worker(number)
            listen: Callable[[], Awaitable[Accept]] = partial(_listen, self._link_path, number)
            if self._others is not None and self._others.is_remote(spot):
                listen = self._others.listen(number)
            actor = self._ray.start(WorkerActor, spot, make, receive, listen)
            workers.append((Part("worker", number), actor))
        hosts: Created = []
        for number in _missing(parts.hosts):
            agent_ids = s.hosts[number]
            spot = place.host(number)
            open_host: Callable[[], Awaitable[AgentHost]] = partial(_open_host, s, agent_ids, self._link_path)
            if self._others is not None and self._others.is_remote(spot):
                open_host = self._others.open_host(number)
            actor = self._ray.start(HostActor, spot, open_host)
            hosts.append((Part("host", agent_ids.start), actor))
        return [(parts.workers, workers), (parts.hosts, hosts)]

    def elsewhere(self, part: Part, number: int) -> NodeAffinitySchedulingStrategy | None:
        """What puts a task on the node of a worker or host (by its number), if that isn't this one."""
        spot = self._placement.host(number) if part.kind == "host" else self._placement.worker(number)
        remote = self._others is not None and self._others.is_remote(spot)
        return self._ray.on(spot.node_id) if remote else None

    def create_allocator(self, settings: AllocatorSettings) -> ActorHandle:
        """The allocator of one turn."""
        make = partial(_open_allocator, self._scenario, settings, self._link_path)
        return self._ray.start(AllocatorActor, Spot(ALLOCATOR_CPUS, 0.0), make)


def _missing(processes: list[Process | None]) -> list[int]:
    return [number for number, process in enumerate(processes) if process is None]


async def _open_host(scenario: Scenario, agent_ids: Sequence[int], link_path: str) -> AgentHost:
    return await connected_host(scenario, agent_ids, (await LinkClient.open(link_path)).connect)


async def _listen(link_path: str, worker: int) -> Accept:
    client = await LinkClient.open(link_path)
    try:
        return accepting(await client.listen(worker))
    finally:
        client.close()


async def _open_allocator(scenario: Scenario, settings: AllocatorSettings, link_path: str) -> Allocator:
    return make_allocator(scenario, settings, await LinkClient.open(link_path))
