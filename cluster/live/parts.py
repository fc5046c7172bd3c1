"""The parts of a live run, its processes and its link, as events act on them."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from agents.agent import Adjustment
from allocator.online.service import Snapshot
from allocator.policies import make_policy
from cluster.recovery import Told
from cluster.scenario.events import EventRefused, Part
from netem.helper.client import LinkClient, PlaceTaken

ANSWER_S = 1.0  # how long an event waits for a process that may be stuck


@dataclass(slots=True, eq=False)
class Process:
    """A process of the run.

    Attributes:
        pid: on its own node; actor: its Ray handle, if it has one.
        ping: asks it for an answer.
        elsewhere: puts a task on its node, if that is another one than this; node: the name of that.
        frozen: whether an event has stopped it.
        gone: set when it has ended and is no part of the run any more.
        watch: waits for that.
    """

    part: Part
    pid: int
    actor: Any
    ping: Callable[[], Awaitable[object]]
    elsewhere: NodeAffinitySchedulingStrategy | None = None
    node: str = field(default_factory=socket.gethostname)
    frozen: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    watch: asyncio.Task[None] | None = None

    @property
    def place(self) -> str:
        """Its process and node, for messages."""
        return f"process {self.pid} on {self.node}"

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
        hosts, workers: by number; None for one that isn't there.
        allocator: of the turn that is on; helper; relay, if there are other nodes. None for one that isn't there.
        allocator_actor: of the turn's last allocator, which may have died.
        told, policy: what the turn's allocator has been told.
    """

    def __init__(self, client: LinkClient, host_of: Sequence[int], workers: int) -> None:
        self.hosts: list[Process | None] = [None] * (host_of[-1] + 1)
        self.workers: list[Process | None] = [None] * workers
        self.allocator: Process | None = None
        self.allocator_actor: Any = None
        self.helper: Process | None = None
        self.relay: Process | None = None
        self._client = client
        self._host_of = host_of
        self._nothing = Snapshot(0.0, 0, 0, (0.0,) * workers, (0.0,) * len(host_of))
        self._used_bytes, self._used_before = 0.0, 0.0
        self.begin_turn("", 0.0)

    def begin_turn(self, policy: str, first_mbps: float) -> None:
        """Forget what events have changed: the turn begins as the scenario says."""
        self.told, self.policy = Told(first_mbps), policy
        self._channel_mbps = first_mbps
        self._adjusted: list[tuple[Adjustment, int | None]] = []
        self._cut: set[int] = set()
        self._snapshot = self._nothing

    def living(self, processes: Iterable[Process | None]) -> list[Process]:
        """Those of `hosts` or `workers` that are there."""
        return [process for process in processes if process is not None]

    def host(self, number: int) -> Part:
        """The host of this number."""
        return Part("host", self._host_of.index(number))

    def index(self, part: Part) -> int:
        """Of a worker or a host in `workers` or `hosts`."""
        return self._host_of[part.number] if part.kind == "host" else part.number

    def put(self, part: Part, process: Process | None) -> None:
        """Have a part be this process from now on; None: it isn't there."""
        match part.kind:
            case "host":
                self.hosts[self.index(part)] = process
            case "worker":
                self.workers[self.index(part)] = process
            case "allocator":
                self.allocator = process
                if process is not None:
                    self.allocator_actor = process.actor
            case "helper":
                self.helper = process
            case "relay":
                self.relay = process

    def get(self, part: Part) -> Process | None:
        """The process that a part is now."""
        match part.kind:
            case "host":
                return self.hosts[self.index(part)]
            case "worker":
                return self.workers[self.index(part)]
            case "allocator":
                return self.allocator
            case "relay":
                return self.relay
        return self.helper

    async def set_channel(self, mbps: float) -> None:
        self._channel_mbps = mbps
        if self.helper is not None:
            await self._client.set_channel(mbps)

    async def report(self, mbps: float) -> None:
        self.told.report(mbps)
        if self.allocator is not None:  # not awaited, and nor is `peek`: the channel must not wait for it
            self.allocator.actor.report.remote(mbps)

    async def peek(self, mbps: float) -> None:
        self.told.peek_mbps = mbps
        if self.allocator is not None:
            self.allocator.actor.peek.remote(mbps)

    async def switch(self, policy: str) -> None:
        self.policy = policy
        if self.allocator is not None:
            await answers({self.allocator: self.allocator.actor.switch.remote(partial(make_policy, policy))})

    async def adjust(self, change: Adjustment, agent_id: int | None = None) -> None:
        self._adjusted.append((change, agent_id))
        await answers({host: host.actor.adjust.remote(change, agent_id) for host in self.living(self.hosts)})

    def adjust_again(self, host: Process) -> None:
        """Give a host that has been started again what has been changed in this turn."""
        for change, agent_id in self._adjusted:
            host.actor.adjust.remote(change, agent_id)

    async def kill(self, part: Part) -> None:
        self._find(part).signal(signal.SIGKILL)

    async def freeze(self, part: Part) -> None:
        process = self._find(part)
        process.signal(signal.SIGSTOP)
        process.frozen = True

    async def thaw(self, part: Part) -> None:
        process = self._find(part)
        if not process.frozen:
            raise EventRefused(f"{part} isn't frozen any more")
        process.frozen = False
        process.signal(signal.SIGCONT)

    async def cut(self, agent_id: int) -> None:
        self._cut.add(agent_id)
        if self.helper is not None:
            await self._client.set_connected(agent_id, False)

    async def restore(self, agent_id: int) -> None:
        self._cut.discard(agent_id)
        if self.helper is not None:
            await self._client.set_connected(agent_id, True)

    async def relinked(self) -> None:
        """The link has been built anew: have it be as it was, and let all that use it connect again."""
        await self._client.set_channel(self._channel_mbps)
        for agent_id in self._cut:
            await self._client.set_connected(agent_id, False)
        reason = f"{Part('helper')} died"
        here = [worker for worker in self.living(self.workers) if worker.elsewhere is None]  # others go by the relay
        # A worker that has come since then listens there already.
        await answers({worker: worker.actor.relink.remote() for worker in here}, but=PlaceTaken)
        await answers({each: each.actor.relink.remote() for each in self.living([self.allocator])})
        await answers({host: host.actor.relink.remote(reason) for host in self.living(self.hosts)})

    async def snapshot(self) -> Snapshot:
        if self.allocator is not None and not self.allocator.frozen:
            with contextlib.suppress(TimeoutError, RayActorError):  # it has died, or is stuck
                async with asyncio.timeout(ANSWER_S):
                    self._snapshot = await self.allocator.actor.snapshot.remote()
        return self._snapshot

    async def used_bytes(self) -> float:
        used_bytes = self._used_bytes if self.helper is None else await self._client.used_bytes()
        if used_bytes < self._used_bytes:  # another link, which begins to count at 0
            self._used_before += self._used_bytes
        self._used_bytes = used_bytes
        return self._used_before + used_bytes

    def _find(self, part: Part) -> Process:
        """Raises EventRefused: it has died."""
        process = self.get(part)
        if process is None:
            raise EventRefused(f"{part} is dead already")
        return process


async def answers(calls: Mapping[Process, Any], but: type[Exception] = RayActorError) -> None:
    """Wait until processes have done what they were told; not for those that are frozen, have died or seem stuck.

    Args:
        but: their errors of this type mean nothing.
    """
    awaited = [asyncio.ensure_future(call) for process, call in calls.items() if not process.frozen]
    if awaited:
        done, _ = await asyncio.wait(awaited, timeout=ANSWER_S)
        for call in done:
            error = call.exception()
            if error is not None and not isinstance(error, RayActorError | but):
                raise error
