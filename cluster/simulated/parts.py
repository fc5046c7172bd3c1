"""The parts of a simulated turn, as events act on them."""

from collections.abc import Callable, Sequence

from agents.agent import Adjustment
from agents.host import AgentHost
from allocator.online.service import Allocator, Snapshot
from allocator.policies import make_policy
from cluster.scenario.events import EventRefused, Part
from cluster.simulated.fluid_link import FluidLink, FluidUplink
from cluster.simulated.processes import Freezable, SimulatedAllocator, SimulatedHelper, SimulatedWorker


class SimulatedParts:
    """Implements `cluster.scenario.events.Parts`.

    A frozen host's agents neither send nor receive; only what they compute at that time without asking goes on.

    Args:
        hosts: the agents that share a process in a live run, and so die and freeze together.
        stop: ends the run for this reason.
    """

    def __init__(
        self,
        link: FluidLink,
        helper: SimulatedHelper,
        allocator: Allocator,
        client: SimulatedAllocator,
        workers: Sequence[SimulatedWorker],
        host: AgentHost,
        uplinks: Sequence[FluidUplink],
        hosts: Sequence[range],
        stop: Callable[[str], None],
    ) -> None:
        self._link, self._helper = link, helper
        self._allocator, self._client = allocator, client
        self._workers = workers
        self._host, self._uplinks, self._hosts = host, uplinks, hosts
        self._stop = stop
        self._dead: set[Part] = set()

    async def set_channel(self, mbps: float) -> None:
        await self._helper.running.wait()
        self._link.set_channel(mbps)

    async def report(self, mbps: float) -> None:
        await self._client.tell(self._allocator.report, mbps)

    async def peek(self, mbps: float) -> None:
        await self._client.tell(self._allocator.peek, mbps)

    async def switch(self, policy: str) -> None:
        await self._client.tell(self._allocator.switch, make_policy(policy))

    async def adjust(self, change: Adjustment, agent_id: int | None = None) -> None:
        self._host.adjust(change, agent_id)

    async def kill(self, part: Part) -> None:
        self._require_alive(part)
        reason = f"{part} died"
        match part.kind:
            case "worker":
                self._dead.add(part)
                self._workers[part.number].kill(reason)
                self._allocator.worker_lost(part.number)
            case "host":
                for agent_id in self._agents_with(part.number):
                    self._dead.add(Part("host", agent_id))
                    self._host.adjust(Adjustment(down=reason), agent_id)
            case _:
                self._host.stop(reason)
                self._stop(reason)

    async def freeze(self, part: Part) -> None:
        self._require_alive(part)
        if part.kind == "host":
            for agent_id in self._agents_with(part.number):
                self._client.freeze_agent(agent_id)
                self._uplinks[agent_id].stall("frozen")
        else:
            self._process(part).freeze()

    async def thaw(self, part: Part) -> None:
        if part.kind == "host":
            for agent_id in self._agents_with(part.number):
                self._client.thaw_agent(agent_id)
                self._uplinks[agent_id].resume("frozen")
        else:
            self._process(part).thaw()

    async def cut(self, agent_id: int) -> None:
        self._uplinks[agent_id].stall("cut")

    async def restore(self, agent_id: int) -> None:
        self._uplinks[agent_id].resume("cut")

    async def snapshot(self) -> Snapshot:
        return self._allocator.snapshot()

    async def used_bytes(self) -> float:
        return self._link.used_bytes()

    def _agents_with(self, agent_id: int) -> range:
        """All agents of the host that has this one."""
        return next(agents for agents in self._hosts if agent_id in agents)

    def _process(self, part: Part) -> Freezable:
        if part.kind == "worker":
            return self._workers[part.number]
        return self._client if part.kind == "allocator" else self._helper

    def _require_alive(self, part: Part) -> None:
        if part in self._dead:
            raise EventRefused(f"{part} is dead already")
