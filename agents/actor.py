"""Edge agents as a Ray actor."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import ray
from ray.actor import ActorHandle

from agents.agent import Adjustment, Terms
from agents.arrivals import Arrival
from agents.host import AgentHost
from agents.record import Journal
from allocator.problem import Request
from allocator.service import Decision
from models.memory import peak_memory_mb


class RayAllocator:
    """The allocator actor as agents see it."""

    def __init__(self, actor: ActorHandle) -> None:
        self._actor = actor

    def announce(self, request: Request) -> None:
        self._actor.announce.remote(request)

    async def assign(self, request: Request) -> Decision:
        return await self._actor.assign.remote(request)

    def received(self, request_id: int) -> None:
        self._actor.received.remote(request_id)

    def finish(self, request_id: int) -> None:
        self._actor.finish.remote(request_id)


@ray.remote
class HostActor:
    """Hosts one or several agents; `make` connects them inside the actor's own process."""

    def __init__(self, make: Callable[[], Awaitable[AgentHost]]) -> None:
        self._make = make

    async def start(self) -> int:
        """Ready to serve; returns the process id."""
        self._host = await self._make()
        return os.getpid()

    async def run(
        self, arrivals: Sequence[Arrival], allocator: ActorHandle, journal: Path, epoch_s: float, terms: Terms
    ) -> None:
        file = Journal(journal)
        try:
            await self._host.run(arrivals, RayAllocator(allocator), file, epoch_s, terms)
        except asyncio.CancelledError:
            pass  # stopped: every request in flight has its row
        finally:
            file.close()

    async def adjust(self, change: Adjustment, agent_id: int | None = None) -> None:
        self._host.adjust(change, agent_id)

    async def stop(self) -> None:
        self._host.stop()

    async def memory_mb(self) -> dict[str, float]:
        return peak_memory_mb()
