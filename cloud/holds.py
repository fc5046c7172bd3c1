"""Hedges that wait in the cloud for the cache that follows them, and the last moment to serve each of them."""

from collections.abc import Callable, Hashable
from operator import itemgetter
from typing import Generic, TypeVar

T = TypeVar("T")
ROUNDING_S = 1e-6


class Holds(Generic[T]):
    """The hedges held by one worker, each with its deadline (s) and its cost (ms).

    All of them may have to be served, one after the other. The latest start of each is found by scheduling backwards
    from the latest deadline.

    Args:
        together: they are served side by side instead: the latest start of each depends on no other.
    """

    def __init__(self, together: bool = False) -> None:
        self._together = together
        self._held: dict[Hashable, tuple[float, float, T]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def add(self, key: Hashable, item: T, deadline_s: float, cost_ms: float) -> None:
        """Hold `item` instead of any other with this key."""
        self._held[key] = (deadline_s, cost_ms, item)

    def drop(self, key: Hashable) -> None:
        """Forget a hedge: its cache has arrived, or its request was cancelled. Unknown keys are ignored."""
        self._held.pop(key, None)

    def recost(self, cost_ms: Callable[[T], float]) -> None:
        """Their costs have changed."""
        self._held = {key: (deadline_s, cost_ms(item), item) for key, (deadline_s, _, item) in self._held.items()}

    def due(self, busy_until_s: Callable[[float], float]) -> list[T]:
        """Take out the hedges that can't wait any longer, most urgent first.

        Args:
            busy_until_s: of a deadline: until when the worker serves other jobs before one with this deadline.
        """
        latest = self._latest_starts()
        due = [key for start_s, key in latest if start_s <= busy_until_s(self._held[key][0]) + ROUNDING_S]
        return [self._held.pop(key)[2] for key in due]

    def next_start_s(self) -> float | None:
        """The latest start of the most urgent hedge; None if none is held."""
        starts = self._latest_starts()
        return starts[0][0] if starts else None

    def _latest_starts(self) -> list[tuple[float, Hashable]]:
        if self._together:
            return sorted(
                ((due_s - cost_ms / 1e3, key) for key, (due_s, cost_ms, _) in self._held.items()), key=itemgetter(0)
            )
        starts: list[tuple[float, Hashable]] = []
        latest_s = float("inf")
        for key, (deadline_s, cost_ms, _) in sorted(self._held.items(), key=lambda entry: -entry[1][0]):
            latest_s = min(latest_s, deadline_s) - cost_ms / 1e3
            starts.append((latest_s, key))
        return starts[::-1]
