"""Whether a process answers, by heartbeats of our own: a frozen process doesn't die, and Ray notices a cut one late."""

import asyncio
from collections.abc import Awaitable, Callable

from models.clock import now_s

PERIOD_S = 0.5


async def until_silent(ping: Callable[[], Awaitable[object]], silent_s: float) -> bool:
    """Return when `ping` has not been answered for `silent_s` (True), or has failed (False).

    Time in which this process itself was held up doesn't count.
    """
    while True:
        asked = asyncio.ensure_future(ping())
        try:
            if not await _answered(asked, silent_s):
                return True
            if asked.exception() is not None:
                return False
        finally:
            asked.cancel()
        await asyncio.sleep(PERIOD_S)


async def _answered(asked: asyncio.Future[object], silent_s: float) -> bool:
    waited_s = 0.0
    while waited_s < silent_s:
        began_s = now_s()
        done, _ = await asyncio.wait({asked}, timeout=min(PERIOD_S, silent_s - waited_s))
        if done:
            return True
        waited_s += min(now_s() - began_s, PERIOD_S)
    return False
