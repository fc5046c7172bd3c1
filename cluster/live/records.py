"""The journals of hosts on other nodes, copied into the run folder while the run goes on.

A host writes to a file of its own node, the second copy; the driver asks for what came after the part that it has, so
nothing is lost or doubled whatever is asked again.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

from ray.exceptions import RayError

from cluster.live.parts import Process

PERIOD_S = 0.2
ANSWER_S = 5.0


class Collector:
    """Copies one remote host's journal of one turn.

    Attributes:
        there: where the host writes, on its own node.
    """

    def __init__(self, host: Any, here: Path) -> None:
        self._host = host
        self._here = here
        self.there = Path(tempfile.gettempdir()) / f"scout-journal-{uuid4().hex}.jsonl"
        self._file = here.open("ab")
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            if not await self._copy():
                return

    async def _copy(self) -> bool:
        """Copy what has come; False if the host has died."""
        try:
            while piece := await self._host.journal.remote(self.there, self._file.tell()):
                self._file.write(piece)
                self._file.flush()
        except RayError:
            return False
        return True

    async def finish(self) -> None:
        """Copy the rest, and remove the file there. Waits at most some seconds for a host that doesn't answer."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(ANSWER_S):
                if await self._copy():
                    await self._host.forget.remote(self.there)
        except (TimeoutError, RayError):
            pass
        self._file.close()


class Collectors:
    """All of a turn."""

    def __init__(self) -> None:
        self._collectors: list[Collector] = []

    def journal(self, host: Process, here: Path) -> Path:
        """Where a host shall write what the run folder shall have at `here`."""
        if host.elsewhere is None:
            return here
        self._collectors.append(Collector(host.actor, here))
        return self._collectors[-1].there

    async def finish(self) -> None:
        """See `Collector.finish`."""
        await asyncio.gather(*[collector.finish() for collector in self._collectors])
