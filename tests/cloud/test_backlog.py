"""Whoever is due first is served first; what is lost waits behind the rest; what is said of the order is true."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from cloud.backlog import Backlog
from models.clock import now_s, sleep_until
from tests.support.virtual import virtually


def filled(*items: tuple[float, float], limit: int = 99) -> Backlog[int]:
    """With items (deadline in s, cost in ms) numbered from 0."""
    backlog: Backlog[int] = Backlog(limit)
    for number, (deadline_s, cost_ms) in enumerate(items):
        assert backlog.put(number, deadline_s, cost_ms)
    return backlog


def emptied(backlog: Backlog[int]) -> list[int]:
    return [backlog.next() for _ in range(len(backlog))]


def test_the_earliest_deadline_first_then_the_shortest_then_as_they_came() -> None:
    async def main() -> None:
        assert emptied(filled((3, 10), (1, 10), (2, 10), (1, 20), (1, 5), (1, 10), (2, 1))) == [4, 1, 5, 3, 6, 2, 0]

    virtually(main)


def test_what_is_lost_waits_behind_all_that_isn_t() -> None:
    async def main() -> None:
        backlog = filled((1.0, 100), (1.2, 100), (2.0, 100), (1.05, 100))
        await sleep_until(1.0)
        assert emptied(backlog) == [1, 2, 0, 3], "those that are lost in order of their deadlines"

    virtually(main)


def test_just_in_time_is_in_time() -> None:
    async def main() -> None:
        backlog = filled((1.0, 300), (2.0, 100))
        await sleep_until(0.7)
        assert backlog.next() == 0
        backlog = filled((1.0, 300), (2.0, 100))
        await sleep_until(0.701)
        assert backlog.next() == 1

    virtually(main)


def test_no_more_than_there_is_room_for() -> None:
    async def main() -> None:
        backlog = filled((0.1, 10), (0.2, 10), limit=2)
        assert not backlog.put(2, 0.05, 10) and len(backlog) == 2
        await sleep_until(1)
        assert backlog.next() == 0 and len(backlog) == 1
        assert backlog.put(3, 2.0, 10)
        assert not backlog.put(4, 2.0, 10), "what is lost takes room, too"
        assert emptied(backlog) == [3, 1]

    virtually(main)


def test_a_worker_waits_until_there_is_something() -> None:
    async def main() -> None:
        backlog: Backlog[int] = Backlog(9)
        served: list[tuple[float, int]] = []

        async def serve() -> None:
            while True:
                await backlog.filled()
                served.append((now_s(), backlog.next()))

        serving = asyncio.create_task(serve())
        for number in range(3):
            await asyncio.sleep(1)
            backlog.put(number, 10.0, 1)
        await asyncio.sleep(1)
        serving.cancel()
        assert served == [(1, 0), (2, 1), (3, 2)]

    virtually(main)


def test_forgetting_everything_says_how_much_that_was() -> None:
    async def main() -> None:
        backlog = filled((0.1, 10), (0.2, 10), (9, 10))
        await sleep_until(1)
        assert backlog.next() == 2
        assert backlog.put(3, 9, 10)
        assert (backlog.clear(), len(backlog), backlog.clear()) == (3, 0, 0)
        assert backlog.before_ms(99) == backlog.blocking_ms(0) == 0
        waiting = asyncio.create_task(backlog.filled())
        await asyncio.sleep(1)
        assert not waiting.done()
        backlog.put(4, 9, 10)
        await waiting

    virtually(main)


def test_work_before_a_deadline_and_work_that_blocks_it() -> None:
    async def main() -> None:
        backlog = filled((2, 100), (1, 40), (3, 7))
        assert [backlog.before_ms(at_s) for at_s in (0.5, 1, 1.5, 2, 9)] == [0, 40, 40, 140, 147]
        assert [backlog.blocking_ms(at_s) for at_s in (0.5, 1, 1.5)] == [40, 0, 0], "only the very next one blocks"
        await sleep_until(1.5)  # the second is lost now
        assert [backlog.before_ms(at_s) for at_s in (0.5, 1.5, 2, 9)] == [0, 0, 100, 107]
        assert [backlog.blocking_ms(at_s) for at_s in (0.5, 1.5, 2)] == [100, 100, 0]
        assert [backlog.next(), backlog.next()] == [0, 2]
        assert backlog.before_ms(9) == 0 and backlog.blocking_ms(9) == 40, "what is lost is less urgent than anything"

    virtually(main)


def test_nothing_blocks_where_nothing_waits() -> None:
    async def main() -> None:
        assert filled().before_ms(9) == filled().blocking_ms(0) == 0

    virtually(main)


# Whole milliseconds, so that many deadlines coincide and sums are exact.
items = st.lists(st.tuples(st.integers(0, 2000).map(lambda ms: ms / 1e3), st.integers(1, 400)), max_size=9)
moments = st.integers(0, 2500).map(lambda ms: ms / 1e3)


@given(items, moments)
def test_order_in_full(put: list[tuple[float, int]], at_s: float) -> None:
    async def main() -> None:
        backlog = filled(*put)
        await sleep_until(at_s)
        lost = {n for n, (deadline_s, cost_ms) in enumerate(put) if deadline_s - cost_ms / 1e3 < at_s - 1e-6}
        assert emptied(backlog) == sorted(range(len(put)), key=lambda n: (n in lost, *put[n], n))

    virtually(main)


@given(items, moments, moments)
def test_what_is_said_to_come_before_something_comes_before_it(
    put: list[tuple[float, int]], at_s: float, deadline_s: float
) -> None:
    """All that is said at a moment, against what is served from that moment on."""

    async def main() -> None:
        backlog = filled(*put)
        await sleep_until(at_s)
        before_ms, blocking_ms = backlog.before_ms(deadline_s), backlog.blocking_ms(deadline_s)
        order = emptied(backlog)
        lost = {n for n, (due_s, cost_ms) in enumerate(put) if due_s - cost_ms / 1e3 < at_s - 1e-6}
        assert before_ms == sum(put[n][1] for n in order if n not in lost and put[n][0] <= deadline_s)
        first = order[0] if order else None
        blocks = first is not None and (first in lost or put[first][0] > deadline_s)
        assert blocking_ms == (put[first][1] if blocks and first is not None else 0)

    virtually(main)


@given(items)
def test_all_are_in_time_if_any_order_has_them_in_time(put: list[tuple[float, int]]) -> None:
    """All there from the start; served by deadline (Jackson 1955)."""

    async def main() -> None:
        end_s = 0.0
        feasible = True
        for deadline_s, cost_ms in sorted(put):
            end_s += cost_ms / 1e3
            feasible = feasible and end_s <= deadline_s
        backlog = filled(*put)
        in_time = 0
        while len(backlog):
            deadline_s, cost_ms = put[backlog.next()]
            await asyncio.sleep(cost_ms / 1e3)
            in_time += now_s() <= deadline_s + 1e-6
        if feasible:
            assert in_time == len(put)

    virtually(main)
