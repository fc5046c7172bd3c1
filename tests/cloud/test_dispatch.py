"""What is promised to workers: true as time passes, in whatever order requests arrive and end."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.dispatch import LeastLoaded
from tests.support.virtual import virtually


def test_the_first_to_be_free_gets_the_next_one() -> None:
    async def main() -> None:
        pool = LeastLoaded(3)
        assert [pool.choose(number, ms) for number, ms in enumerate([100, 50, 50, 10, 70])] == [0, 1, 2, 1, 2]
        assert pool.free_in_ms() == (100, 60, 120)
        pool.done(2)
        assert pool.free_in_ms() == (100, 60, 70)
        assert pool.choose(9, 1) == 1

    virtually(main)


def test_promises_shrink_only_while_something_is_there_to_serve() -> None:
    async def main() -> None:
        pool = LeastLoaded(1)
        pool.choose(1, 100)
        pool.choose(2, 40)
        await asyncio.sleep(1)
        assert pool.free_in_ms() == (140,), "nothing has arrived, so nothing was served"
        pool.arrived(2)
        await asyncio.sleep(0.030)
        assert pool.free_in_ms() == (pytest.approx(110),)
        pool.arrived(1)
        await asyncio.sleep(0.020)
        assert pool.free_in_ms() == (pytest.approx(100),), "late with the first: the second is still to come"
        pool.done(2)
        await asyncio.sleep(0.025)
        assert pool.free_in_ms() == (pytest.approx(75),), "served since the first was done"
        pool.done(1)
        assert pool.free_in_ms() == (0,)

    virtually(main)


def test_who_gives_up_in_the_queue_doesn_t_restart_who_is_served() -> None:
    async def main() -> None:
        pool = LeastLoaded(1)
        for number in (1, 2):
            pool.choose(number, 100)
            pool.arrived(number)
        await asyncio.sleep(0.060)
        pool.done(2)
        assert pool.free_in_ms() == (pytest.approx(40),)

    virtually(main)


def test_unknown_requests_are_fine() -> None:
    async def main() -> None:
        pool = LeastLoaded(2)
        pool.arrived(7)
        pool.done(7)
        pool.choose(1, 10)
        pool.done(1)
        pool.done(1)
        pool.arrived(1)
        assert pool.free_in_ms() == (0, 0)
        assert pool.choose(2, 10) == 0

    virtually(main)


def test_rounding_doesn_t_add_up() -> None:
    async def main() -> None:
        rng = random.Random(1)
        pool = LeastLoaded(1)
        numbers = list(range(2000))
        for number in numbers:
            pool.choose(number, rng.uniform(0, 500))
        rng.shuffle(numbers)
        for number in numbers:
            pool.done(number)
        assert pool.free_in_ms() == (0,)
        pool.choose(0, 100)
        assert pool.free_in_ms() == (100,)

    virtually(main)


steps = st.lists(
    st.tuples(st.sampled_from(["choose", "arrived", "done", "wait"]), st.integers(0, 9), st.floats(0, 400)),
    max_size=60,
)


@given(steps, st.integers(1, 3))
def test_never_negative_and_idle_is_exactly_nothing(taken: list[tuple[str, int, float]], workers: int) -> None:
    async def main() -> None:
        pool = LeastLoaded(workers)
        promised: dict[int, tuple[int, float]] = {}
        for step, number, ms in taken:
            if step == "choose" and number not in promised:
                free_in_ms = pool.free_in_ms()
                worker = pool.choose(number, ms)
                promised[number] = worker, ms
                assert free_in_ms[worker] == min(free_in_ms)
            elif step == "arrived":
                pool.arrived(number)
            elif step == "done":
                pool.done(number)
                promised.pop(number, None)
            elif step == "wait":
                await asyncio.sleep(ms / 1e3)
            for worker, free_in_ms_ in enumerate(pool.free_in_ms()):
                of_worker = [ms for w, ms in promised.values() if w == worker]
                assert 0 <= free_in_ms_ <= sum(of_worker) + 1e-4
                assert free_in_ms_ >= sum(of_worker) - max(of_worker, default=0) - 1e-4, "one at most is being served"
                if not of_worker:
                    assert free_in_ms_ == 0, "or one idle worker would be preferred to another"

    virtually(main)
