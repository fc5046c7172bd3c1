"""Edge agents as a Ray actor."""

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.util.metrics import Counter, Histogram

from agents.agent import Adjustment, Terms
from agents.arrivals import Arrival
from agents.host import AgentHost
from agents.record import Journal, Record, read_from
from allocator.online.standing import Standing
from allocator.problem import Plan, Request
from models.memory import peak_memory_mb

LATENCY_BOUNDS_MS: list[float] = [
    50,
    100,
    200,
    350,
    500,
    750,
    1000,
    1500,
    2000,
    3000,
    5000,
    7500,
    10_000,
    20_000,
    60_000,
]
JOURNAL_PIECE_BYTES = 2**20
LATENESS_BOUNDS_MS: list[float] = [0.5, 1, 2, 5, 10, 20, 50, 100, 1000]


class RayAllocator:
    """The allocator actor as agents see it.

    Messages to one that has died are lost, and who asks it waits for the next one.
    """

    def __init__(self, actor: ActorHandle) -> None:
        self._actor = actor
        self._replaced = asyncio.Event()

    def replace(self, actor: ActorHandle, standing: Sequence[Standing]) -> None:
        """Another one serves from now on; `standing` is what it must know."""
        self._actor = actor
        actor.take_over.remote(standing)
        self._replaced.set()
        self._replaced = asyncio.Event()

    def announce(self, request: Request) -> None:
        self._actor.announce.remote(request)

    async def assign(self, request: Request) -> Plan:
        while True:
            replaced = self._replaced
            try:
                return await self._actor.assign.remote(request)
            except ray.exceptions.RayActorError:
                await replaced.wait()

    def received(self, request_id: int) -> None:
        self._actor.received.remote(request_id)

    def finish(self, request_id: int, gave_up: bool = False) -> None:
        self._actor.finish.remote(request_id, gave_up)


class CountedJournal(Journal):
    """A journal whose entries are counted as Ray metrics, too."""

    def __init__(self, path: Path, tags: dict[str, str]) -> None:
        super().__init__(path)
        keys = tuple(tags)
        self._tags = tags
        self._requests = Counter("scout_requests", "requests that have ended", (*keys, "status"))
        self._bytes = Counter("scout_wire_bytes", "bytes sent, link layer", (*keys, "mode"))
        self._latency = Histogram("scout_latency_ms", "of answered requests", LATENCY_BOUNDS_MS, keys)
        self._lateness = Histogram("scout_lateness_ms", "how late the emulator began", LATENESS_BOUNDS_MS, keys)
        self._quality = Counter("scout_quality_delivered", "sum over requests; by requests: the mean", keys)

    def write(self, record: Record) -> None:
        super().write(record)
        self._requests.inc(1, self._tags | {"status": str(record.status)})
        if record.wire_bytes:
            self._bytes.inc(record.wire_bytes, self._tags | {"mode": str(record.mode)})
        if record.quality_delivered > 0:
            self._quality.inc(record.quality_delivered, self._tags)
        for histogram, ms in ((self._latency, record.latency_ms), (self._lateness, record.lateness_ms)):
            if not math.isnan(ms):
                histogram.observe(max(ms, 0.0), self._tags)


@ray.remote
class HostActor:
    """Hosts one or several agents; `make` connects them inside the actor's own process."""

    def __init__(self, make: Callable[[], Awaitable[AgentHost]]) -> None:
        self._make = make
        self._allocator: RayAllocator | None = None

    async def start(self) -> int:
        """Ready to serve; returns the process id."""
        self._host = await self._make()
        return os.getpid()

    async def ping(self) -> None:
        """Answer, which a process can't that is stuck."""

    async def replace_allocator(self, allocator: ActorHandle) -> None:
        """The allocator of the running schedule has died; this one takes its place."""
        if self._allocator is not None:
            self._allocator.replace(allocator, self._host.standing())

    async def relink(self, reason: str) -> None:
        """Another link has been built in place of one that was lost for this reason."""
        self._host.relink(reason)

    async def run(
        self,
        arrivals: Sequence[Arrival],
        allocator: ActorHandle,
        journal: Path,
        tags: dict[str, str],
        epoch_s: float,
        terms: Terms,
    ) -> None:
        """Play a schedule; `tags` go with every metric."""
        file = CountedJournal(journal, tags)
        try:
            self._allocator = RayAllocator(allocator)
            await self._host.run(arrivals, self._allocator, file, epoch_s, terms)
        except asyncio.CancelledError:
            pass  # stopped: every request in flight has its row
        finally:
            self._allocator = None
            file.close()

    async def journal(self, path: Path, offset: int) -> bytes:
        """What a journal of this node has from `offset` on, or the first part of it."""
        return read_from(path, offset, JOURNAL_PIECE_BYTES)

    async def forget(self, path: Path) -> None:
        """A journal of this node has been copied whole."""
        path.unlink(missing_ok=True)  # noqa: ASYNC240 (takes microseconds)

    async def stay(self) -> None:
        """Ends with the process: who waits for it hears of that at once."""
        await asyncio.Event().wait()

    async def adjust(self, change: Adjustment, agent_id: int | None = None) -> None:
        self._host.adjust(change, agent_id)

    async def stop(self, reason: str) -> None:
        self._host.stop(reason)

    async def memory_mb(self) -> dict[str, float]:
        return peak_memory_mb()
