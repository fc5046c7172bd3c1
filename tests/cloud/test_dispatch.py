"""The dispatcher's picture of each worker is the worker's own state, at any moment.

The tests of order, batches and lost workers fail on 06bf9f5: its dispatcher believed that workers serve in order of
arrival, one request at a time, and live for ever.
"""

import asyncio
import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.online.interfaces import NO_WORKER, CloudJob
from allocator.problem import ModeOption
from cloud.batching import ContinuousBatch, ContinuousBatching
from cloud.continuous import ContinuousWorker
from cloud.dispatch import LeastLoaded
from cloud.frames import CloudStages, Header, Kind
from cloud.runtime import ProfileCloud
from cloud.schedule import Schedule
from cloud.worker import AnyWorker, Job, QueueFull, Worker
from models.clock import now_s, sleep_ms, sleep_until
from models.profiles import ModelProfile
from tests.support.virtual import virtually


def job(cost_ms: float, deadline_s: float = 99.0, decoder: int = 0, prefill_ms: float = 0.0) -> CloudJob:
    return CloudJob(deadline_s, prefill_ms, cost_ms, decoder)


def test_the_worker_with_the_least_work_gets_the_next_request() -> None:
    async def main() -> None:
        pool = LeastLoaded(3)
        assert [pool.choose(number, job(ms)) for number, ms in enumerate([100, 50, 50, 10, 70])] == [0, 1, 2, 1, 2]
        assert pool.free_in_ms() == (100, 60, 120)
        pool.done(2)
        assert pool.free_in_ms() == (100, 60, 70)
        assert pool.choose(9, job(1)) == 1

    virtually(main)


def test_work_shrinks_only_while_the_worker_has_something_to_serve() -> None:
    async def main() -> None:
        pool = LeastLoaded(1)
        pool.choose(1, job(100))
        pool.choose(2, job(40))
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


def test_urgent_requests_are_served_first() -> None:
    """On 06bf9f5 the second request was thought to be in service after the first, and the worker free 200 ms early."""

    async def main() -> None:
        pool = LeastLoaded(1)
        for number, (ms, deadline_s) in enumerate([(100, 9), (200, 8), (50, 7)]):
            pool.choose(number, job(ms, deadline_s))
            pool.arrived(number)
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.097)
        pool.done(0)
        await asyncio.sleep(0.010)
        schedule = pool.schedule(0)
        assert schedule is not None and (schedule.serving, schedule.queued) == ([2], [1])
        await asyncio.sleep(0.040)
        pool.done(2)
        await asyncio.sleep(0.150)
        assert pool.free_in_ms() == (pytest.approx(50),)

    virtually(main)


def test_a_request_given_up_in_the_queue_is_still_served() -> None:
    async def main() -> None:
        pool = LeastLoaded(1)
        for number in (1, 2):
            pool.choose(number, job(100))
            pool.arrived(number)
        await asyncio.sleep(0.060)
        pool.done(2, gave_up=True)
        assert pool.free_in_ms() == (pytest.approx(140),)
        await asyncio.sleep(0.040)
        pool.done(1)
        await asyncio.sleep(0.030)
        assert pool.free_in_ms() == (pytest.approx(70),)
        await asyncio.sleep(1)
        pool.choose(3, job(100))
        pool.arrived(3)
        await asyncio.sleep(0.010)
        assert pool.free_in_ms() == (pytest.approx(90),), "the given-up request ended when it should have"

    virtually(main)


def test_a_request_answered_out_of_order_corrects_the_picture() -> None:
    """A hedge may be served first, and nobody tells the allocator before."""

    async def main() -> None:
        pool = LeastLoaded(1)
        for number in (1, 2):
            pool.choose(number, job(100, deadline_s=number))
            pool.arrived(number)
        await asyncio.sleep(0.080)
        pool.done(2)
        await asyncio.sleep(0.010)
        assert pool.free_in_ms() == (pytest.approx(90),), "the first has begun only now"

    virtually(main)


def test_unknown_requests_are_ignored() -> None:
    async def main() -> None:
        pool = LeastLoaded(2)
        pool.arrived(7)
        pool.done(7)
        pool.choose(1, job(10))
        pool.done(1)
        pool.done(1)
        pool.arrived(1)
        assert pool.free_in_ms() == (0, 0)
        assert pool.choose(2, job(10)) == 0
        with pytest.raises(KeyError):
            pool.predict(1, 0.0)

    virtually(main)


def test_rounding_errors_do_not_add_up() -> None:
    async def main() -> None:
        rng = random.Random(1)
        pool = LeastLoaded(1)
        numbers = list(range(2000))
        for number in numbers:
            pool.choose(number, job(rng.uniform(0, 500)))
        rng.shuffle(numbers)
        for number in numbers:
            pool.done(number)
        assert pool.free_in_ms() == (0,)
        pool.choose(0, job(100))
        assert pool.free_in_ms() == (100,)

    virtually(main)


def test_a_lost_worker_gets_no_requests_until_it_is_restored() -> None:
    """On 06bf9f5 a dead worker soon looked idle, and attracted all requests."""

    async def main() -> None:
        pool = LeastLoaded(2)
        assert [pool.choose(number, job(100)) for number in (1, 2)] == [0, 1]
        pool.arrived(1)
        pool.lost(0)
        pool.lost(0)
        assert pool.free_in_ms() == (math.inf, 100)
        pool.done(1)
        assert [pool.choose(number, job(100)) for number in (3, 4)] == [1, 1]
        pool.lost(1)
        assert pool.choose(5, job(100)) == NO_WORKER
        with pytest.raises(KeyError):
            pool.predict(5, 0.0)
        pool.restored(0)
        pool.restored(0)
        assert pool.free_in_ms() == (0, math.inf)
        assert pool.choose(5, job(30)) == 0
        assert pool.schedule(1) is None

    virtually(main)


def test_a_prediction_counts_the_requests_that_go_first() -> None:
    async def main() -> None:
        pool = LeastLoaded(1)
        for number, (ms, deadline_s) in enumerate([(100, 5), (200, 9), (50, 7), (30, 6)]):
            pool.choose(number, job(ms, deadline_s))
        pool.arrived(0)
        pool.arrived(1)
        await sleep_until(0.060)
        assert pool.predict(0, 0.0) == pytest.approx(0.1), "in service"
        assert pool.predict(1, 0.0) == pytest.approx(0.3), "in the queue"
        assert pool.predict(2, 0.080) == pytest.approx(0.150), "ahead of it, if it arrives before that begins"
        assert pool.predict(1, 0.0) == pytest.approx(0.350)
        assert pool.predict(3, 0.120) == pytest.approx(0.180)
        assert pool.predict(3, 1.0) == pytest.approx(1.030)

    virtually(main)


PROFILES = [
    ModelProfile.model_validate(
        {
            "name": f"test/{name}",
            "kv_bytes": 1000,
            "edge_prefill_ms": 1,
            "quality_basis": "none",
            "modes": {
                "full": {"payload_bytes": 1000, "decode_ms": decode_ms, "quality": 100},
                "prompt": {"payload_bytes": 5, "cloud_prefill_ms": 37, "decode_ms": decode_ms + 21, "quality": 100},
            },
        }
    )
    for name, decode_ms in (("small", 41), ("large", 113))
]


@dataclass(frozen=True)
class Ask:
    """A request of a random run: when it is sent, how long it travels, what it is, when its agent gives up."""

    after_ms: int
    travel_ms: int
    slack_ms: int
    model: int
    mode: int
    patience_ms: int


asks = st.builds(
    Ask,
    st.integers(0, 150),
    st.integers(0, 300),
    st.integers(-100, 800),
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from([200, 400, 5000]),
)
losses = st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 2), st.integers(10, 500)), max_size=3)


@dataclass
class Pool:
    """Real workers and their dispatcher, on virtual time.

    Moments of different requests and checks never coincide: what happens first at one moment is nobody's business.
    """

    workers: int
    batch: int | ContinuousBatching
    alive: dict[int, tuple[AnyWorker, "asyncio.Task[None]"]] = field(default_factory=dict)
    on_the_way: dict[int, tuple[int, CloudJob]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.batch, int):
            self.dispatcher = LeastLoaded(self.workers, self.batch)
        else:
            self.dispatcher = LeastLoaded(self.workers, batching=self.batch)
        for number in range(self.workers):
            self.start(number)

    def start(self, number: int) -> None:
        worker: AnyWorker
        if isinstance(self.batch, int):
            worker = Worker(ProfileCloud(PROFILES), queue_limit=4, batch=self.batch)
        else:
            worker = ContinuousWorker(ProfileCloud(PROFILES), queue_limit=4, rules=self.batch)
        self.alive[number] = worker, asyncio.create_task(worker.serve_queue())

    async def lose(self, at_ms: int, worker: int, for_ms: int, number: int) -> None:
        await sleep_until((at_ms + 0.41 + number * 1e-3) / 1e3)
        if worker not in self.alive:
            return
        self.alive.pop(worker)[1].cancel()
        self.dispatcher.lost(worker)
        self.on_the_way = {n: way for n, way in self.on_the_way.items() if way[0] != worker}
        await sleep_ms(for_ms)
        self.start(worker)
        self.dispatcher.restored(worker)

    async def ask(self, number: int, at_ms: float, ask: Ask) -> None:
        await sleep_until(at_ms / 1e3)
        mode = list(PROFILES[ask.model].modes.values())[ask.mode]
        # Off by fractions that no sum of times has: whether a job is lost must not hang on rounding.
        deadline_s = now_s() + (ask.travel_ms + mode.cloud_prefill_ms + mode.decode_ms + ask.slack_ms + 0.5) / 1e3
        work = PROFILES[ask.model].generation_of(list(PROFILES[ask.model].modes)[ask.mode])
        job = CloudJob(deadline_s, mode.cloud_prefill_ms, mode.decode_ms, ask.model, work)
        to = self.dispatcher.choose(number, job)
        assert (to == NO_WORKER) == (not self.alive)
        if to == NO_WORKER:
            return
        worker = self.alive[to][0]
        self.on_the_way[number] = to, job
        answered = asyncio.get_running_loop().create_future()

        async def reply(kind: Kind, header: Header, stages: CloudStages) -> None:
            if kind is Kind.RECEIPT:
                self.dispatcher.arrived(number)
            elif kind is Kind.ANSWER and not answered.done():
                answered.set_result(None)

        header = Header(Kind.REQUEST, number, 0, model=ask.model, mode=ask.mode, deadline_s=deadline_s)
        gave_up = False
        try:
            async with asyncio.timeout(ask.patience_ms / 1e3 + 0.25e-3):
                await sleep_ms(ask.travel_ms)
                if self.on_the_way.pop(number, None):
                    await worker.submit(Job(number, header, now_s(), reply))
                await answered
        except QueueFull:
            pass
        except TimeoutError:
            gave_up = True
        self.on_the_way.pop(number, None)
        self.dispatcher.done(number, gave_up)

    def check(self) -> None:
        at_s, free_in_ms = now_s(), self.dispatcher.free_in_ms()
        for number in range(self.workers):
            believed = self.dispatcher.schedule(number)
            if number not in self.alive:
                assert believed is None and free_in_ms[number] == math.inf
                continue
            assert believed is not None
            worker = self.alive[number][0]
            if isinstance(worker, ContinuousWorker):
                self.check_batch(number, worker, free_in_ms[number])
                continue
            assert isinstance(worker, Worker) and isinstance(believed, Schedule)
            own = worker.schedule
            assert believed.serving == [job.key for job in own.serving]
            assert believed.queued == [job.key for job in own.queued]
            begin_s = max(at_s, own.busy_until_s)
            later = {Job(n, *[None] * 3): job for n, (to, job) in self.on_the_way.items() if to == number}  # type: ignore[arg-type]
            expected_ms = own.left_ms(at_s) + own.queue_ms(begin_s, later)
            assert free_in_ms[number] == pytest.approx(expected_ms, abs=1e-6)

    def check_batch(self, number: int, worker: ContinuousWorker, free_in_ms: float) -> None:
        """A worker looks when something happens, the dispatcher when asked: both have made the same steps then."""
        believed = self.dispatcher.schedule(number)
        assert isinstance(believed, ContinuousBatch)
        worker.batch.advance(now_s())
        assert believed.running == [job.key for job in worker.batch.running]
        assert believed.waiting == [job.key for job in worker.batch.waiting]
        coming = [job for to, job in self.on_the_way.values() if to == number]
        expected_ms = worker.batch.work_ms(now_s()) + sum(
            job.generation.added_ms(believed.rules.slots) for job in coming
        )
        assert free_in_ms == pytest.approx(expected_ms, abs=1e-6)


BATCHING = [
    ContinuousBatching(slots=3, step_tokens=64, chunk_tokens=32),
    ContinuousBatching(slots=2, order="fcfs", kv_tokens=16 * 27),
]


@settings(deadline=None)
@given(st.lists(asks, max_size=14), losses, st.integers(1, 3), st.sampled_from([1, 1, 2, 3, *BATCHING, *BATCHING]))
def test_the_picture_is_the_worker_s_state(
    asked: list[Ask], lost: list[tuple[int, int, int]], workers: int, batch: int | ContinuousBatching
) -> None:
    """Random arrivals, deadlines, costs, decoders, batches, give-ups, full queues and deaths. Fails on 06bf9f5."""

    async def main() -> None:
        await sleep_until(0.87e-3)
        pool = Pool(workers, batch)
        tasks = [asyncio.create_task(pool.lose(*loss, number)) for number, loss in enumerate(lost)]
        at_ms = 1.0
        for number, ask in enumerate(asked):
            at_ms += ask.after_ms
            tasks.append(asyncio.create_task(pool.ask(number, at_ms + (number + 1) * 1e-2, ask)))
        while not all(task.done() for task in tasks):
            await sleep_until(now_s() + 0.011)
            pool.check()
        for task in tasks:
            task.result()
        await sleep_until(now_s() + 3)  # until all requests that were given up have been served
        assert [free_ms for free_ms in pool.dispatcher.free_in_ms() if free_ms != math.inf] == [0] * len(pool.alive)
        for _, serving in pool.alive.values():
            serving.cancel()

    virtually(main)


def test_a_batch_costs_what_it_adds() -> None:
    """A worker with free slots begins at once, and is free when what its requests add is done."""

    async def main() -> None:
        profile, (cache, prompt) = PROFILES[0], PROFILES[0].modes
        pool = LeastLoaded(2, batching=ContinuousBatching(slots=2))
        options = {
            mode: ModeOption(
                mode, 1000, 0, entry.cloud_prefill_ms + entry.decode_ms, 1, generation=profile.generation_of(mode)
            )
            for mode, entry in profile.modes.items()
        }
        jobs = {mode: CloudJob(9.0, 0, 0, generation=option.generation) for mode, option in options.items()}
        assert (pool.loaded(options[prompt]).cloud_ms, pool.loaded(options[prompt]).work_ms) == (37 + 62, 37 + 62 / 2)
        assert [pool.choose(number, jobs[prompt]) for number in range(3)] == [0, 1, 0]
        assert pool.begin_in_ms() == (0, 0), "nothing has come yet that has an end"
        assert pool.free_in_ms() == pytest.approx((2 * 68, 68))
        for number in range(3):
            pool.arrived(number)
        await asyncio.sleep(0.090)
        assert pool.begin_in_ms() == (pytest.approx(2 * 37 + 62 - 90, abs=2), 0)
        assert pool.predict(0, 0.0) == pytest.approx(0.136)
        beside = pool.loaded(options[cache])
        assert beside.cloud_ms == pytest.approx(62, abs=4), "in step with a slower one"
        await asyncio.sleep(0.1)
        assert pool.free_in_ms() == (0, 0) and pool.begin_in_ms() == (0, 0)

    virtually(main)
