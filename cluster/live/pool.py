"""The Ray actors of a live run, each made inside its own process."""

import socket
from collections.abc import Sequence
from functools import partial

from ray.actor import ActorHandle

from agents.actor import HostActor
from agents.host import AgentHost
from agents.uplink import SocketUplink
from allocator.actor import AllocatorActor
from allocator.online.service import Allocator
from cloud.actor import WorkerActor
from cluster.live.parts import LiveParts, Process
from cluster.live.placement import ALLOCATOR_CPUS, Placement
from cluster.live.ray_session import RaySession
from cluster.scenario.events import Part
from cluster.scenario.schema import AllocatorSettings, Scenario
from cluster.wiring import make_allocator, make_host, make_reception, make_worker
from netem.helper.client import LinkClient

Created = list[tuple[Part, ActorHandle]]


class Pool:
    """Creates a scenario's actors; their `start` is for the caller to await."""

    def __init__(self, scenario: Scenario, ray_session: RaySession, placement: Placement, link_path: str) -> None:
        self._scenario = scenario
        self._ray = ray_session
        self._placement = placement
        self._link_path = link_path

    def parts(self, client: LinkClient, helper_pid: int) -> LiveParts:
        """The parts of a run, none of which is there yet."""
        s = self._scenario
        hosts = -(-len(s.agent_profiles) // s.agents_per_actor)
        return LiveParts(client, helper_pid, hosts, s.cloud.workers, s.agents_per_actor)

    def create_missing(self, parts: LiveParts) -> list[tuple[list[Process | None], Created]]:
        """Actors for the workers that aren't there, then for the hosts; they come up side by side."""
        s, place = self._scenario, self._placement
        workers: Created = []
        for number in _missing(parts.workers):
            make, receive = partial(make_worker, s, models=True), partial(make_reception, s)
            listen = partial(_listen, self._link_path, number)
            actor = self._ray.start(WorkerActor, place.worker_cpus, place.worker_gpus, make, receive, listen)
            workers.append((Part("worker", number), actor))
        hosts: Created = []
        for number in _missing(parts.hosts):
            first = number * s.agents_per_actor
            agent_ids = range(first, min(first + s.agents_per_actor, len(s.agent_profiles)))
            open_host = partial(_open_host, s, agent_ids, self._link_path)
            actor = self._ray.start(HostActor, place.agent_cpus, place.agent_gpus, open_host)
            hosts.append((Part("host", first), actor))
        return [(parts.workers, workers), (parts.hosts, hosts)]

    def create_allocator(self, settings: AllocatorSettings) -> ActorHandle:
        """The allocator of one turn."""
        make = partial(_open_allocator, self._scenario, settings, self._link_path)
        return self._ray.start(AllocatorActor, ALLOCATOR_CPUS, 0.0, make)


def _missing(processes: list[Process | None]) -> list[int]:
    return [number for number, process in enumerate(processes) if process is None]


async def _open_host(scenario: Scenario, agent_ids: Sequence[int], link_path: str) -> AgentHost:
    client = await LinkClient.open(link_path)
    warm = scenario.uplink.transport.connections == "warm"
    uplinks = {agent_id: SocketUplink(partial(client.connect, agent_id), warm) for agent_id in agent_ids}
    for uplink in uplinks.values():
        await uplink.open(scenario.cloud.workers)
    return make_host(scenario, agent_ids, uplinks.__getitem__, models=True)


async def _listen(link_path: str, worker: int) -> socket.socket:
    client = await LinkClient.open(link_path)
    try:
        return await client.listen(worker)
    finally:
        client.close()


async def _open_allocator(scenario: Scenario, settings: AllocatorSettings, link_path: str) -> Allocator:
    return make_allocator(scenario, settings, await LinkClient.open(link_path))
