"""How an actor on the driver's node takes part in the link. Actors import this module, so it imports little."""

from collections.abc import Sequence

from agents.host import AgentHost
from allocator.online.service import Allocator
from cloud.sockets import Accept, accepting
from cluster.live.elsewhere import connected_host
from cluster.scenario.schema import AllocatorSettings, Scenario
from cluster.wiring import make_allocator
from netem.helper.client import LinkClient

PATIENCE_S = 20.0  # with a helper that is being started again


async def open_host(scenario: Scenario, agent_ids: Sequence[int], link_path: str) -> AgentHost:
    """A host whose agents are connected with every worker. Raises LinkLost."""
    return await connected_host(scenario, agent_ids, (await LinkClient.open(link_path, PATIENCE_S)).connect)


async def listen(link_path: str, worker: int) -> Accept:
    """A worker's place in the emulated cloud. Raises LinkLost."""
    client = await LinkClient.open(link_path, PATIENCE_S)
    try:
        return accepting(await client.listen(worker))
    finally:
        client.close()


async def open_allocator(scenario: Scenario, settings: AllocatorSettings, link_path: str) -> Allocator:
    """One of the scenario's allocators, whose grants go to the link. Raises LinkLost."""
    return make_allocator(scenario, settings, await LinkClient.open(link_path, PATIENCE_S))
