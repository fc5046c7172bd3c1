"""The parts of a live run, its processes and its link, as events act on them."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agents.agent import Adjustment
from allocator.online.service import Snapshot
from allocator.policies import make_policy
from cluster.scenario.events import EventRefused, Part
from netem.helper.client import LinkClient


@dataclass(slots=True)
class Process:
    """A process of the run.

    Attributes:
        pid: on its own node.
        actor: its Ray handle if it has one.
        killed: whether an event has ended it.
        elsewhere: puts a task on its node, if that is another one than this.
    """

    part: Part
    pid: int
    actor: Any = None
    elsewhere: NodeAffinitySchedulingStrategy | None = None
    frozen: bool = False
    killed: bool = False

    def signal(self, signum: signal.Signals) -> None:
        """Raises EventRefused: it has ended, or isn't ours. Of a process elsewhere, that is found out too late."""
        if self.elsewhere is not None:
            _signal.options(scheduling_strategy=self.elsewhere).remote(self.pid, signum)
            return
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            raise EventRefused(f"{self.part} is dead already") from None
        except PermissionError:
            raise EventRefused(f"{self.part} belongs to another user") from None


@ray.remote(num_cpus=0, max_retries=0)
def _signal(pid: int, signum: signal.Signals) -> None:
    os.kill(pid, signum)


class LiveParts:
    """Implements `cluster.scenario.events.Parts` on real processes.

    Args:
        host_of: the number of each agent's host.

    Attributes:
        hosts, workers: by number; None for one that has died.
        allocator: of the turn that is on.
    """

    def __init__(self, client: LinkClient, helper_pid: int, host_of: Sequence[int], workers: int) -> None:
        self.hosts: list[Process | None] = [None] * (host_of[-1] + 1)
        self.workers: list[Process | None] = [None] * workers
        self.allocator: Process | None = None
        self._helper = Process(Part("helper"), helper_pid)
        self._client = client
        self._host_of = host_of
        self._snapshot: Snapshot | None = None

    def living(self, processes: list[Process | None]) -> list[Process]:
        """Those of `hosts` or `workers` that are alive."""
        return [process for process in processes if process is not None]

    def index(self, part: Part) -> int:
        """Of a worker or a host in `workers` or `hosts`."""
        return self._host_of[part.number] if part.kind == "host" else part.number

    async def set_channel(self, mbps: float) -> None:
        await self._client.set_channel(mbps)

    async def report(self, mbps: float) -> None:
        self._ask_allocator().report.remote(mbps)  # not awaited, and nor is `peek`: the channel must not wait for it

    async def peek(self, mbps: float) -> None:
        self._ask_allocator().peek.remote(mbps)

    async def switch(self, policy: str) -> None:
        switched = self._ask_allocator().switch.remote(partial(make_policy, policy))
        if self.allocator is not None and not self.allocator.frozen:
            await switched

    async def adjust(self, change: Adjustment, agent_id: int | None = None) -> None:
        hosts = self.living(self.hosts)
        adjusted = [host.actor.adjust.remote(change, agent_id) for host in hosts]
        await asyncio.gather(*[done for host, done in zip(hosts, adjusted, strict=True) if not host.frozen])

    async def kill(self, part: Part) -> None:
        process = self._find(part)
        process.signal(signal.SIGKILL)
        process.killed = True

    async def freeze(self, part: Part) -> None:
        process = self._find(part)
        process.signal(signal.SIGSTOP)
        process.frozen = True

    async def thaw(self, part: Part) -> None:
        with contextlib.suppress(EventRefused):  # it has died meanwhile
            process = self._find(part)
            process.frozen = False
            process.signal(signal.SIGCONT)

    async def cut(self, agent_id: int) -> None:
        await self._client.set_connected(agent_id, False)

    async def restore(self, agent_id: int) -> None:
        await self._client.set_connected(agent_id, True)

    async def snapshot(self) -> Snapshot:
        if self._snapshot is None or self.allocator is None or not self.allocator.frozen:
            self._snapshot = await self._ask_allocator().snapshot.remote()
        assert self._snapshot is not None
        return self._snapshot

    async def used_bytes(self) -> float:
        return await self._client.used_bytes()

    def _ask_allocator(self) -> Any:
        assert self.allocator is not None
        return self.allocator.actor

    def _find(self, part: Part) -> Process:
        """Raises EventRefused: it has died."""
        found: Process | None = self._helper
        match part.kind:
            case "host":
                found = self.hosts[self.index(part)]
            case "worker":
                found = self.workers[self.index(part)]
            case "allocator":
                found = self.allocator
        if found is None:
            raise EventRefused(f"{part} is dead already")
        return found
