"""A clock that follows another machine's: CLOCK_MONOTONIC counts from another moment on each, and not quite as fast."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

SLEW = 5e-4  # the most by which the clock runs faster or slower than the machine's while it is set right
MAX_DRIFT = 3e-4  # of two machines' clocks; crystals keep within 1e-4
BASELINE_S = 10.0  # over which drift is measured; over less, errors of single samples would look like drift
WINDOW_S = 120.0


class AlignedClock:
    """Follows samples of the other clock's offset. It is set once, and from then on never jumps and never runs back.

    Args:
        local_s: this machine's clock.
    """

    def __init__(self, local_s: Callable[[], float] = time.monotonic) -> None:
        self._local_s = local_s
        self._since_s = local_s()
        self._offset_s = 0.0  # of the clock as it was at `since`
        self._drift = 0.0
        self._missing_s = 0.0  # by how much it was wrong then
        self._samples: deque[tuple[float, float]] = deque()

    def now_s(self) -> float:
        """The time on the other clock."""
        local_s = self._local_s()
        return local_s + self._offset_at(local_s)

    def _offset_at(self, local_s: float) -> float:
        passed_s = local_s - self._since_s
        made_up_s = min(abs(self._missing_s), SLEW * passed_s)
        return self._offset_s + self._drift * passed_s + math.copysign(made_up_s, self._missing_s)

    def follow(self, offset_s: float) -> float:
        """The other clock minus this machine's is `offset_s` now; returns by how much this one was wrong, in seconds.

        The first sample sets the clock, and counts as no error.
        """
        local_s = self._local_s()
        error_s = 0.0
        if self._samples:
            before_s = self._offset_at(local_s)
            error_s = offset_s - before_s
            self._offset_s, self._missing_s = before_s, error_s
        else:
            self._offset_s = offset_s
        self._since_s = local_s
        self._samples.append((local_s, offset_s))
        while local_s - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        first_s, first_offset_s = self._samples[0]
        if local_s - first_s >= BASELINE_S:
            drift = (offset_s - first_offset_s) / (local_s - first_s)
            self._drift = min(max(drift, -MAX_DRIFT), MAX_DRIFT)
        return error_s

    @property
    def settled(self) -> bool:
        """Whether drift is known, so that samples may be rarer."""
        return self._since_s - self._samples[0][0] >= BASELINE_S if self._samples else False

    def drive(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make it the clock of an event loop, and so of all that asks the loop for the time or sets its timers.

        Raises:
            TypeError: the loop's clock can't be replaced (uvloop's can't).
        """
        try:
            loop.time = self.now_s  # type: ignore[method-assign]
        except AttributeError:
            raise TypeError(f"the clock of {type(loop).__module__} can't be replaced; uninstall uvloop") from None
