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

    Serving by deadline meets all deadlines if any order does; keeping those that are lost out of the way keeps one late
    request from making all others late.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._timely: list[tuple[float, int, float, T]] = []  # (deadline in s, tie, ms, item)
        self._late: deque[tuple[float, T]] = deque()
        self._ties = count()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._timely) + len(self._late)

    def put(self, item: T, deadline_s: float, cost_ms: float) -> bool:
        """Queue what is due at `deadline_s` (loop time) and takes `cost_ms`; False if there is no room."""
        if len(self) >= self._limit:
            return False
        heappush(self._timely, (deadline_s, next(self._ties), cost_ms, item))
        self._filled.set()
        return True

    async def filled(self) -> None:
        """Wait until there is something."""
        while not len(self):
            self._filled.clear()
            await self._filled.wait()

    def next(self) -> T:
        """Take out what is to be served next. There must be something."""
        while self._timely:
            deadline_s, _, cost_ms, item = heappop(self._timely)
            if deadline_s - cost_ms / 1e3 >= now_s() - ROUNDING_S:
                return item
            self._late.append((cost_ms, item))
        return self._late.popleft()[1]

    def before_ms(self, deadline_s: float) -> float:
        """Work that is served before something with this deadline."""
        return sum(cost_ms for own_s, _, cost_ms, _ in self._timely if own_s <= deadline_s)

    def blocking_ms(self, deadline_s: float) -> float:
        """Work that would be begun now although it is less urgent than something with this deadline."""
        if self._timely:
            own_s, _, cost_ms, _ = self._timely[0]
            return cost_ms if own_s > deadline_s else 0.0
        return self._late[0][0] if self._late else 0.0

    def clear(self) -> int:
        """Forget everything; returns how many that were."""
        forgotten = len(self)
        self._timely.clear()
        self._late.clear()
        return forgotten
