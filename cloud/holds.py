"""Hedges that wait in the cloud for the cache they went ahead of, and when waiting must end."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")
ROUNDING_S = 1e-6


class Holds(Generic[T]):
    """What one worker holds, each with its deadline (s) and how long serving it takes (ms).

    All of them may have to be served, one after the other: so each one's last safe moment is found by scheduling
    backwards from the latest deadline.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, tuple[float, float, T]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def add(self, key: Hashable, item: T, deadline_s: float, cost_ms: float) -> None:
        """Hold `item`; one key holds one thing."""
        self._held[key] = (deadline_s, cost_ms, item)

    def drop(self, key: Hashable) -> None:
        """Its cache is there, or nobody wants it any more; unknown keys are fine."""
        self._held.pop(key, None)

    def due(self, busy_until_s: Callable[[float], float]) -> list[T]:
        """Take out what can't wait any longer, most urgent first.

        Args:
            busy_until_s: for something with a deadline, until when the worker has other work before it.
        """
        latest = self._latest_starts()
        due = [key for start_s, key in latest if start_s <= busy_until_s(self._held[key][0]) + ROUNDING_S]
        return [self._held.pop(key)[2] for key in due]

    def next_start_s(self) -> float | None:
        """When serving the most urgent one must start; None if nothing is held."""
        starts = self._latest_starts()
        return starts[0][0] if starts else None

    def _latest_starts(self) -> list[tuple[float, Hashable]]:
        starts: list[tuple[float, Hashable]] = []
        latest_s = float("inf")
        for key, (deadline_s, cost_ms, _) in sorted(self._held.items(), key=lambda entry: -entry[1][0]):
            latest_s = min(latest_s, deadline_s) - cost_ms / 1e3
            starts.append((latest_s, key))
        return starts[::-1]
