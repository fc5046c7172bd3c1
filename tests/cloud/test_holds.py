"""What is held is released at its last safe moment: never later, never earlier, whatever else is held."""

import math
from collections.abc import Callable
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from cloud.holds import ROUNDING_S, Holds

# (deadline in s, cost in ms); whole milliseconds, so that many deadlines coincide and sums stay exact to a nanosecond.
held_items = st.lists(st.tuples(st.integers(0, 3000).map(lambda ms: ms / 1e3), st.integers(0, 400)), max_size=8)
moments = st.integers(0, 3500).map(lambda ms: ms / 1e3)


def holding(items: list[tuple[float, int]]) -> Holds[int]:
    holds: Holds[int] = Holds()
    for number, (deadline_s, cost_ms) in enumerate(items):
        holds.add(number, number, deadline_s, cost_ms)
    return holds


def busy_until(at_s: float) -> Callable[[float], float]:
    """Other work until then, however urgent what is held is."""
    return lambda start_s: at_s


def all_in_time(items: list[tuple[float, int]], from_s: float) -> bool:
    """Whether serving all of them from then on, the earliest deadline first (no order is better), is in time."""
    ends_s = accumulate((cost_ms / 1e3 for _, cost_ms in sorted(items)), initial=from_s)
    next(ends_s)
    return all(end_s <= deadline_s + 1e-9 for end_s, (deadline_s, _) in zip(ends_s, sorted(items), strict=True))


@given(held_items)
def test_waiting_until_the_first_start_is_safe_and_any_longer_is_not(items: list[tuple[float, int]]) -> None:
    start_s = holding(items).next_start_s()
    if not items:
        assert start_s is None
        return
    assert start_s is not None and all_in_time(items, start_s)
    assert not all_in_time(items, start_s + 1e-6)


@given(held_items, moments)
def test_what_is_released_can_t_wait_and_what_is_not_can(items: list[tuple[float, int]], busy_until_s: float) -> None:
    holds = holding(items)
    released = holds.due(busy_until(busy_until_s))
    kept = [items[number] for number in range(len(items)) if number in holds]
    assert sorted(released) == [number for number in range(len(items)) if number not in holds]
    assert len(kept) == len(holds)
    deadlines_s = [items[number][0] for number in released]
    assert deadlines_s == sorted(deadlines_s), "most urgent first"
    if kept:
        assert (start_s := holds.next_start_s()) is not None and start_s > busy_until_s
        assert all_in_time(kept, start_s)
    for number in released:  # it and those after it could not have waited any longer
        later = [item for item in items if item[0] >= items[number][0]]
        assert not all_in_time(later, busy_until_s + 2 * ROUNDING_S)


@given(held_items, st.lists(st.integers(0, 200), min_size=1, max_size=200))
def test_served_as_released_everything_is_in_time_if_anything_could(
    items: list[tuple[float, int]], steps_ms: list[int]
) -> None:
    """A worker that looks at every start that it is told, and at other times, whatever they are."""
    if not all_in_time(items, 0.0):
        return
    holds = holding(items)
    now_s = free_s = 0.0
    served = 0
    looks = iter(steps_ms)
    while len(holds):
        busy_s = max(now_s, free_s)
        for number in holds.due(lambda start_s, busy_s=busy_s: busy_s):  # type: ignore[misc]
            free_s = max(now_s, free_s) + items[number][1] / 1e3
            assert free_s <= items[number][0] + 1e-5
            served += 1
        start_s = holds.next_start_s()
        if start_s is not None:
            assert start_s > now_s, "looking again at the same moment would never end"
            now_s = min(start_s, now_s + next(looks, math.inf) / 1e3)
    assert served == len(items)


@given(held_items, st.sets(st.integers(0, 7)))
def test_what_is_dropped_counts_no_more(items: list[tuple[float, int]], dropped: set[int]) -> None:
    holds = holding(items)
    for number in [*dropped, *dropped]:
        holds.drop(number)
    left = [number for number in range(len(items)) if number not in dropped]
    assert holds.next_start_s() == holding([items[number] for number in left]).next_start_s()
    assert sorted(holds.due(busy_until(math.inf))) == left
    assert len(holds) == 0 and holds.next_start_s() is None


def test_one_key_holds_one_thing() -> None:
    holds: Holds[str] = Holds()
    holds.add("key", "old", 1.0, 100)
    holds.add("key", "new", 2.0, 100)
    assert (len(holds), holds.next_start_s(), holds.due(busy_until(5.0))) == (1, 1.9, ["new"])
