"""What waits for a cloud worker, and in which order it is served."""

import asyncio
from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import Generic, TypeVar

from models.clock import now_s

T = TypeVar("T")
ROUNDING_S = 1e-6


class Backlog(Generic[T]):
    """Whoever is due first is served first; what can't be in time any more waits behind all that can.

    Serving by deadline meets all deadlines if any order does. Of what is due at once the shortest goes first, so
    that as many as possible are in time where not all can be. Keeping those that are lost out of the way keeps one
    late request from making all others late.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._timely: list[tuple[float, float, int, T]] = []  # (deadline in s, ms, tie, item)
        self._late: deque[tuple[float, T]] = deque()
        self._ties = count()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._timely) + len(self._late)

    def put(self, item: T, deadline_s: float, cost_ms: float) -> bool:
        """Queue what is due at `deadline_s` (loop time) and takes `cost_ms`; False if there is no room."""
        if len(self) >= self._limit:
            return False
        heappush(self._timely, (deadline_s, cost_ms, next(self._ties), item))
        self._filled.set()
        return True

    async def filled(self) -> None:
        """Wait until there is something."""
        while not len(self):
            self._filled.clear()
            await self._filled.wait()

    def next(self) -> T:
        """Take out what is to be served next. There must be something."""
        self._set_lost_aside()
        return heappop(self._timely)[3] if self._timely else self._late.popleft()[1]

    def peek(self) -> T | None:
        """What `next` would take out; None if there is nothing."""
        self._set_lost_aside()
        if self._timely:
            return self._timely[0][3]
        return self._late[0][1] if self._late else None

    def before_ms(self, deadline_s: float) -> float:
        """Work that is served before something with this deadline."""
        at_s = now_s()
        return sum(c for own_s, c, _, _ in self._timely if own_s <= deadline_s and not _is_lost(own_s, c, at_s))

    def blocking_ms(self, deadline_s: float) -> float:
        """Work that would be begun now although it is less urgent than something with this deadline."""
        self._set_lost_aside()
        if self._timely:
            own_s, cost_ms, _, _ = self._timely[0]
            return cost_ms if own_s > deadline_s else 0.0
        return self._late[0][0] if self._late else 0.0

    def clear(self) -> int:
        """Forget everything; returns how many that were."""
        forgotten = len(self)
        self._timely.clear()
        self._late.clear()
        return forgotten

    def _set_lost_aside(self) -> None:
        """Have first in order what can be in time, if anything can."""
        at_s = now_s()
        while self._timely and _is_lost(self._timely[0][0], self._timely[0][1], at_s):
            _, cost_ms, _, item = heappop(self._timely)
            self._late.append((cost_ms, item))


def _is_lost(deadline_s: float, cost_ms: float, at_s: float) -> bool:
    return deadline_s - cost_ms / 1e3 < at_s - ROUNDING_S
