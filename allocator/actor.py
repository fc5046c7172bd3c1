"""The allocator as a Ray actor."""

import os
from collections.abc import Awaitable, Callable, Sequence

import ray

from allocator.online.service import Allocator, Snapshot
from allocator.online.standing import Standing
from allocator.policies import Policy
from allocator.problem import Gap, Plan, Request


@ray.remote
class AllocatorActor:
    """Serves one `Allocator`; `start` builds it inside the actor's own process, where its link connection lives."""

    def __init__(self, make: Callable[[], Awaitable[Allocator]]) -> None:
        self._make = make

    async def start(self) -> int:
        """Ready to serve; returns the process id."""
        self._allocator = await self._make()
        return os.getpid()

    async def ping(self) -> None:
        """Answer, which a process can't that is stuck."""

    async def recall(self, reports_mbps: list[float], peek_mbps: float) -> None:
        self._allocator.recall(reports_mbps, peek_mbps)

    async def take_over(self, standing: Sequence[Standing]) -> None:
        await self._allocator.take_over(standing)

    async def relink(self) -> None:
        await self._allocator.relink()

    async def report(self, mbps: float) -> None:
        await self._allocator.report(mbps)

    async def peek(self, mbps: float) -> None:
        await self._allocator.peek(mbps)

    async def announce(self, request: Request) -> None:
        self._allocator.announce(request)

    async def assign(self, request: Request) -> Plan:
        return await self._allocator.assign(request)

    async def received(self, request_id: int) -> None:
        self._allocator.received(request_id)

    async def finish(self, request_id: int, gave_up: bool = False) -> None:
        self._allocator.finish(request_id, gave_up)

    async def worker_lost(self, worker: int) -> None:
        self._allocator.worker_lost(worker)

    async def worker_restored(self, worker: int) -> None:
        self._allocator.worker_restored(worker)

    async def snapshot(self) -> Snapshot:
        return self._allocator.snapshot()

    async def switch(self, make: Callable[[], Policy]) -> None:
        await self._allocator.switch(make())

    async def solve_times_ms(self) -> list[float]:
        return self._allocator.solve_times_ms()

    async def solve_gaps(self) -> list[Gap]:
        return self._allocator.solve_gaps()

    async def mean_grants_mbps(self) -> dict[int, float]:
        return self._allocator.mean_grants_mbps()
