"""A cloud worker as a Ray actor."""

import asyncio
import os
from collections.abc import Awaitable, Callable

import ray

from cloud.reception import Reception
from cloud.sockets import Accept
from cloud.worker import AnyWorker
from models.memory import peak_memory_mb


@ray.remote
class WorkerActor:
    """Serves one worker on connections that `listen` takes inside the actor's own process."""

    def __init__(
        self,
        make: Callable[[], AnyWorker],
        receive: Callable[[AnyWorker], Reception],
        listen: Callable[[], Awaitable[Accept]],
    ) -> None:
        self._make = make
        self._receive = receive
        self._listen = listen

    async def start(self) -> int:
        """Ready to serve; returns the process id."""
        self._worker = self._make()
        self._worker.check()
        self._reception = self._receive(self._worker)
        self._serving = asyncio.create_task(self._reception.run(await self._listen()))
        return os.getpid()

    async def stay(self) -> None:
        """Ends with the process: who waits for it hears of that at once."""
        await asyncio.Event().wait()

    async def ping(self) -> None:
        """Answer, which a process can't that is stuck."""

    async def relink(self) -> None:
        """Listen on the link that has been built in place of the one before."""
        self._reception.move(await self._listen())

    async def settle(self) -> None:
        await self._worker.settle()

    async def counts(self) -> dict[str, int]:
        if self._serving.done():
            await self._serving  # it ends only by an error, which the caller gets
        return dict(self._worker.counts)

    async def memory_mb(self) -> dict[str, float]:
        return peak_memory_mb()
