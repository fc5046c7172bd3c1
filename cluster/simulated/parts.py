"""The parts of a simulated turn, as events act on them, and their recovery."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from agents.agent import Adjustment
from agents.host import AgentHost
from allocator.online.service import Allocator, Snapshot
from allocator.policies import make_policy
from cloud.worker import AnyWorker
from cluster.recovery import Recoveries, Told, silent
from cluster.scenario.events import EventRefused, Part
from cluster.simulated.fluid_link import FluidLink, FluidUplink
from cluster.simulated.processes import Freezable, SimulatedAllocator, SimulatedHelper, SimulatedWorker
from models.clock import now_s, sleep_until


@dataclass(frozen=True, slots=True)
class Restarts:
    """How processes are started again.

    Attributes:
        make_worker, make_allocator: a new one; the latter for the policy of this name.
        silent_s, restart_s: see `cluster.scenario.recovery`.
        spawn: runs a coroutine until the turn ends; watch: has the turn fail with a task.
        end_turn: ends the turn, which can't go on, for this reason.
    """

    account: Recoveries
    make_worker: Callable[[], AnyWorker]
    make_allocator: Callable[[str], Allocator]
    silent_s: float
    restart_s: float
    spawn: Callable[[Coroutine[Any, Any, None]], object]
    watch: Callable[[asyncio.Task[None]], None]
    end_turn: Callable[[str], None]


class SimulatedParts:
    """Implements `cluster.scenario.events.Parts`.

    A frozen host's agents neither send nor receive; only what they compute at that time without asking goes on.

    Args:
        hosts: the agents that share a process in a live run, and so die and freeze together.
        relayed: the agents whose connections go by the relay in a live run over several nodes.
        policy: the allocator's; first_mbps: what it has been told of the channel.

    Attributes:
        restarts: to be set before an event is played.
    """

    restarts: Restarts

    def __init__(
        self,
        link: FluidLink,
        helper: SimulatedHelper,
        client: SimulatedAllocator,
        workers: Sequence[SimulatedWorker],
        host: AgentHost,
        uplinks: Sequence[FluidUplink],
        hosts: Sequence[range],
        relayed: Sequence[int],
        policy: str,
        first_mbps: float,
    ) -> None:
        self._link, self._helper = link, helper
        self._client = client
        self._workers = workers
        self._host, self._uplinks, self._hosts = host, uplinks, hosts
        self._relayed = [uplinks[agent_id] for agent_id in relayed]
        self._policy = policy
        self._dead: set[Part] = set()
        self._frozen: dict[Part, float] = {}  # since when
        self._told = Told(first_mbps)

    async def set_channel(self, mbps: float) -> None:
        await self._helper.running.wait()
        self._link.set_channel(mbps)

    async def report(self, mbps: float) -> None:
        self._told.report(mbps)
        await self._client.tell(self._client.allocator.report, mbps)

    async def peek(self, mbps: float) -> None:
        self._told.peek_mbps = mbps
        await self._client.tell(self._client.allocator.peek, mbps)

    async def switch(self, policy: str) -> None:
        self._policy = policy
        await self._client.tell(self._client.allocator.switch, make_policy(policy))

    async def adjust(self, change: Adjustment, agent_id: int | None = None) -> None:
        self._host.adjust(change, agent_id)

    async def kill(self, part: Part) -> None:
        self._require_alive(part)
        self._kill(self._process_of(part))

    async def freeze(self, part: Part) -> None:
        self._require_alive(part)
        part = self._process_of(part)
        since_s = self._frozen.setdefault(part, now_s())
        if part.kind == "host":
            for agent_id in self._agents_with(part.number):
                self._client.freeze_agent(agent_id)
                self._uplinks[agent_id].stall("frozen")
        elif part.kind == "relay":
            for uplink in self._relayed:
                uplink.stall("relay")
        else:
            self._freezable(part).freeze()
        self.restarts.spawn(self._notice(part, since_s))

    async def thaw(self, part: Part) -> None:
        part = self._process_of(part)
        if self._frozen.pop(part, None) is None:
            raise EventRefused(f"{part} isn't frozen any more")
        if part.kind == "host":
            self._thaw_host(part)
        elif part.kind == "relay":
            for uplink in self._relayed:
                uplink.resume("relay")
        else:
            self._freezable(part).thaw()

    async def cut(self, agent_id: int) -> None:
        self._uplinks[agent_id].stall("cut")

    async def restore(self, agent_id: int) -> None:
        self._uplinks[agent_id].resume("cut")

    async def snapshot(self) -> Snapshot:
        return self._client.allocator.snapshot()

    async def used_bytes(self) -> float:
        return self._link.used_bytes()

    async def _notice(self, part: Part, since_s: float) -> None:
        """A part that is frozen for too long is as good as dead."""
        await sleep_until(since_s + self.restarts.silent_s)
        if self._frozen.get(part) == since_s:
            self._kill(part, f"its process {silent(self.restarts.silent_s)}")

    def _kill(self, part: Part, cause: str = "") -> None:
        reason = f"{part} died"
        self._dead.add(part)
        match part.kind:
            case "worker":
                self._workers[part.number].kill(reason)
                self.restarts.spawn(self._client.tell(self._tell_lost, part.number))
            case "host":
                for agent_id in self._agents_with(part.number):
                    self._host.adjust(Adjustment(down=reason), agent_id)
            case "allocator":
                self._client.kill()
            case "helper":
                self._helper.freeze()
                for uplink in self._uplinks:
                    uplink.stall(reason)
                self._host.relink(reason)
                for worker in self._workers:
                    worker.forget()
            case "relay":
                for uplink in self._relayed:
                    uplink.stall("relay")
                    uplink.close(reason)
        if self._frozen.pop(part, None) is not None and part.kind == "host":
            self._thaw_host(part)
        if self.restarts.account.died(part, cause):
            self.restarts.spawn(self._start_again(part))
        elif part.kind in ("allocator", "helper", "relay"):
            self.restarts.end_turn(reason)

    async def _start_again(self, part: Part) -> None:
        await sleep_until(now_s() + self.restarts.restart_s)
        self._dead.discard(part)
        match part.kind:
            case "worker":
                worker = self._workers[part.number]
                worker.start(self.restarts.make_worker())
                self.restarts.watch(worker.serving)
                await self._client.tell(self._tell_restored, part.number)
            case "host":
                for agent_id in self._agents_with(part.number):
                    self._host.adjust(Adjustment(down=""), agent_id)
            case "allocator":
                await self._start_allocator()
            case "helper":
                self._helper.thaw()
                for uplink in self._uplinks:
                    uplink.resume(f"{part} died")
            case "relay":
                for uplink in self._relayed:
                    uplink.resume("relay")
        self.restarts.account.back(part)

    async def _start_allocator(self) -> None:
        allocator = self.restarts.make_allocator(self._policy)
        allocator.recall(self._told.reports_mbps, self._told.peek_mbps)
        for number, worker in enumerate(self._workers):
            if worker.died is not None:
                allocator.worker_lost(number)
        await allocator.take_over(self._host.standing())
        self._client.start(allocator)

    async def _tell_lost(self, number: int) -> None:
        self._client.allocator.worker_lost(number)

    async def _tell_restored(self, number: int) -> None:
        self._client.allocator.worker_restored(number)

    def _thaw_host(self, part: Part) -> None:
        for agent_id in self._agents_with(part.number):
            self._client.thaw_agent(agent_id)
            self._uplinks[agent_id].resume("frozen")

    def _process_of(self, part: Part) -> Part:
        """A host goes by its first agent."""
        return Part("host", self._agents_with(part.number)[0]) if part.kind == "host" else part

    def _agents_with(self, agent_id: int) -> range:
        """All agents of the host that has this one."""
        return next(agents for agents in self._hosts if agent_id in agents)

    def _freezable(self, part: Part) -> Freezable:
        if part.kind == "worker":
            return self._workers[part.number]
        return self._client if part.kind == "allocator" else self._helper

    def _require_alive(self, part: Part) -> None:
        if self._process_of(part) in self._dead:
            raise EventRefused(f"{part} is dead already")
