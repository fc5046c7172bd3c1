"""Precise waiting on the running event loop's clock, wall or virtual."""

import asyncio

# The kernel may oversleep by 0.1 % of a wait, for low-priority processes (as Ray's workers) by 0.5 %: 40 ms of 8 s.
# So long waits are split into steps that end early, until the remainder is too short for the error to matter.
STEP = 0.97
SHORT_S = 0.02


def now_s() -> float:
    """Seconds on the running event loop's clock. Live it is CLOCK_MONOTONIC, one for all processes of a machine."""
    return asyncio.get_running_loop().time()


async def sleep_until(at_s: float) -> None:
    """Sleep until `at_s` on the loop's clock; return at once if it has passed."""
    loop = asyncio.get_running_loop()
    if getattr(loop, "punctual", False):  # virtual time
        if at_s > loop.time():
            woken = loop.create_future()
            alarm = loop.call_at(at_s, woken.set_result, None)
            try:
                await woken
            finally:
                alarm.cancel()
        return
    while (left_s := at_s - loop.time()) > 0:
        await asyncio.sleep(left_s if left_s < SHORT_S else STEP * left_s)


async def sleep_ms(duration_ms: float) -> None:
    """Sleep for `duration_ms` milliseconds."""
    if duration_ms > 0:
        await sleep_until(now_s() + duration_ms / 1e3)
