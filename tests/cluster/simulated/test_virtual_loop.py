"""Virtual time: in order, exact, immediate, and the same in every run."""

import asyncio
import logging
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.simulated.virtual_loop import Stalled, VirtualLoop
from models.clock import now_s, sleep_ms, sleep_until
from tests.support.virtual import virtually


@given(st.lists(st.integers(0, 20), max_size=30))
def test_timers_run_in_order_of_time_and_then_of_asking(delays_s: list[int]) -> None:
    async def main() -> list[tuple[float, int]]:
        loop = asyncio.get_running_loop()
        ran: list[tuple[float, int]] = []
        for number, delay_s in enumerate(delays_s):
            loop.call_later(delay_s, lambda number=number: ran.append((loop.time(), number)))
        await asyncio.sleep(21)
        return ran

    assert virtually(main) == sorted((delay_s, number) for number, delay_s in enumerate(delays_s))


def test_the_clock_starts_at_0_and_passes_in_no_time() -> None:
    async def main() -> None:
        assert now_s() == 0
        await sleep_until(1e7)
        assert now_s() == 1e7
        await sleep_until(5)  # long past
        await sleep_ms(0.25)
        assert now_s() == pytest.approx(1e7 + 0.00025, abs=1e-8)
        for _ in range(1000):  # steps that are at the clock's own resolution there
            await sleep_ms(1e-6)
        assert now_s() < 1e7 + 0.001

    began_s = time.process_time()
    virtually(main)
    assert time.process_time() - began_s < 10


def test_timeouts_end_what_takes_longer_and_nothing_else() -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.sleep(3)
        assert now_s() == 2
        async with asyncio.timeout(2):
            await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout_at(1):  # already past
                await asyncio.sleep(1)
        assert now_s() == 3
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.5)
        assert now_s() == 3.5

    virtually(main)


def test_what_is_cancelled_doesn_t_run_and_takes_no_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ran: list[str] = []
        timer, soon = loop.call_later(50, ran.append, "timer"), loop.call_soon(ran.append, "soon")
        timer.cancel()
        soon.cancel()
        assert timer.cancelled() and soon.cancelled()
        sleeping = asyncio.create_task(sleep_until(40))
        await asyncio.sleep(1)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping
        assert now_s() == 1 and ran == []
        await asyncio.sleep(9)
        assert now_s() == 10

    virtually(main)


def test_locks_queues_and_groups_work() -> None:
    async def main() -> list[tuple[float, str]]:
        lock, queue, log = asyncio.Lock(), asyncio.Queue[str](maxsize=1), list[tuple[float, str]]()

        async def work(name: str) -> None:
            async with lock:
                await asyncio.sleep(1)
                await queue.put(name)

        async def read() -> None:
            for _ in range(3):
                await asyncio.sleep(2)
                log.append((now_s(), await queue.get()))

        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(work(name))
            group.create_task(read())
        return log

    assert virtually(main) == [(2, "a"), (4, "b"), (6, "c")]


def test_a_group_whose_member_fails_ends_the_others() -> None:
    ended: list[float] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(now_s())

    async def fail() -> None:
        await asyncio.sleep(1)
        raise LookupError

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        virtually(main)
    assert caught.group_contains(LookupError) and ended == [1]


def test_waiting_for_what_can_t_happen_is_an_error_and_not_a_hang() -> None:
    cleaned_up: list[bool] = []

    async def main() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned_up.append(True)

    with pytest.raises(Stalled, match="deadlocked"):
        virtually(main)
    assert cleaned_up == [True]


def test_two_runs_schedule_alike() -> None:
    def run() -> list[tuple[float, int]]:
        rng = random.Random(3)
        log: list[tuple[float, int]] = []

        async def main() -> None:
            lock = asyncio.Lock()

            async def wander(number: int) -> None:
                for _ in range(5):
                    await asyncio.sleep(rng.choice([0, 0.5, 0.5, 1]))
                    async with lock:
                        log.append((now_s(), number))
                        await asyncio.sleep(rng.choice([0, 0.25]))

            async with asyncio.TaskGroup() as group:
                for number in range(20):
                    group.create_task(wander(number))

        virtually(main)
        return log

    assert run() == run()


def test_an_exception_in_a_callback_is_reported_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        loop.call_soon(int, "nonsense")
        loop.call_later(1, int, "rubbish")
        await asyncio.sleep(2)
        return "done"

    with caplog.at_level(logging.ERROR, logger="asyncio"):
        assert virtually(main) == "done"
    assert len(caplog.records) == 2 and "nonsense" in caplog.text and "rubbish" in caplog.text


def test_an_interrupt_in_a_callback_ends_the_run() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        asyncio.get_running_loop().call_later(1, interrupt)
        await asyncio.sleep(2)

    with pytest.raises(KeyboardInterrupt):
        virtually(main)
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


def test_one_loop_runs_several_mains_one_after_the_other() -> None:
    async def main() -> float:
        await asyncio.sleep(1)
        return now_s()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert [runner.run(main()) for _ in range(3)] == [1, 2, 3]
