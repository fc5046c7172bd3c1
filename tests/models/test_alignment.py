"""A clock that follows another: it is near it all the time, and never jumps or runs back."""

import asyncio
import random

import pytest

from models.alignment import SLEW, AlignedClock


class Local:
    """A machine's clock, which the test moves on."""

    def __init__(self) -> None:
        self.at_s = 50.0

    def now_s(self) -> float:
        return self.at_s


def other_s(local_s: float, drift: float) -> float:
    return 3000.0 + local_s * (1 + drift)


@pytest.mark.parametrize("drift", [5e-5, -5e-5, 1e-4])
def test_ten_minutes_of_drift_stay_within_half_a_millisecond(drift: float) -> None:
    local, noise = Local(), random.Random(1)
    clock = AlignedClock(local.now_s)
    clock.follow(other_s(local.at_s, drift) - local.at_s)
    next_s, last_s = local.at_s + 2, clock.now_s()
    for _ in range(60_000):
        local.at_s += 0.01
        if local.at_s >= next_s:
            clock.follow(other_s(local.at_s, drift) - local.at_s + noise.uniform(-5e-5, 5e-5))
            next_s = local.at_s + (10 if clock.settled else 2)
        now_s = clock.now_s()
        assert abs(now_s - other_s(local.at_s, drift)) < 5e-4, "at every moment"
        assert now_s > last_s
        assert abs((now_s - last_s) / 0.01 - 1) < SLEW + 4e-4, "no jump"
        last_s = now_s


def test_a_wrong_sample_is_made_up_for_slowly() -> None:
    local = Local()
    clock = AlignedClock(local.now_s)
    clock.follow(100.0)
    local.at_s += 1
    assert clock.follow(100.010) == pytest.approx(0.010)
    before_s = clock.now_s()
    assert before_s == pytest.approx(local.at_s + 100, abs=1e-9), "no jump"
    local.at_s += 10
    assert clock.now_s() - before_s == pytest.approx(10 * (1 + SLEW))
    local.at_s += 20
    assert clock.now_s() == pytest.approx(local.at_s + 100.010)


async def test_it_drives_a_loop_with_its_timers() -> None:
    clock = AlignedClock()
    clock.follow(1000.0)
    loop = asyncio.get_running_loop()
    wall_s = loop.time()
    clock.drive(loop)
    try:
        assert loop.time() - wall_s == pytest.approx(1000, abs=1)
        async with asyncio.timeout(5):
            await asyncio.sleep(0.01)
        async with asyncio.timeout_at(loop.time() + 5):
            await asyncio.sleep(0.01)
    finally:
        del loop.time  # type: ignore[method-assign]
