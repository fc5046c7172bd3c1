"""Which worker a request goes to, and when each worker will be free."""

import math
from dataclasses import replace
from typing import Protocol

from allocator.online.interfaces import NO_WORKER, CloudJob
from allocator.problem import ModeOption
from cloud.batching import ContinuousBatch, ContinuousBatching, Later
from cloud.schedule import Schedule
from models.clock import now_s
from models.generation import Generation

# Slowdowns by others of a batch are told apart in such steps: equal options are looked up instead of solved anew.
SLOWER = 0.05


class LeastLoaded:
    """Sends each request to the living worker with the least work left; the lowest number among equals.

    Implements `allocator.online.interfaces.Dispatcher` with a copy of each worker's schedule, which the allocator's
    messages drive. The copy can differ from the worker in three ways: messages take time; a hedge that is served before
    its request has arrived is known only from the start of its service, and counts with the cost of the request; and a
    request that is answered earlier than the copy has begun it shows that the copy served in another order, after which
    the copy starts again with its next batch.

    Args:
        batch: the most requests that a worker serves together.
        batching: how workers batch, if they do so by iteration.
    """

    def __init__(self, workers: int, batch: int = 1, batching: ContinuousBatching | None = None) -> None:
        self._batch = batch
        self._batching = batching
        self._copies: list[_Copy | None] = [self._new_copy() for _ in range(workers)]  # None: lost
        self._chosen: dict[int, _Copy] = {}

    def _new_copy(self) -> "_Copy":
        return _WorkerCopy(self._batch) if self._batching is None else _ContinuousCopy(self._batching)

    def choose(self, request_id: int, job: CloudJob) -> int:
        """See `Dispatcher`."""
        free_in_ms = self.free_in_ms()
        worker = free_in_ms.index(min(free_in_ms))
        copy = self._copies[worker]
        if copy is None:
            return NO_WORKER
        copy.promise(request_id, job)
        self._chosen[request_id] = copy
        return worker

    def given(self, request_id: int, job: CloudJob, worker: int) -> None:
        """See `Dispatcher`."""
        if copy := self._copies[worker]:
            copy.promise(request_id, job)
            self._chosen[request_id] = copy

    def predict(self, request_id: int, arrives_s: float) -> float:
        """See `Dispatcher`. Simulates the schedule from now on.

        Requests that are on their way to the same worker count from their own last predicted arrival; on random
        schedules, this halved the error of ignoring them or of counting them as arrived. Those without a prediction are
        ignored, as are requests that will be chosen later.
        """
        return self._chosen[request_id].predict(request_id, arrives_s, now_s())

    def arrived(self, request_id: int) -> None:
        """See `Dispatcher`."""
        if copy := self._chosen.get(request_id):
            copy.arrived(request_id, now_s())

    def done(self, request_id: int, gave_up: bool = False) -> None:
        """See `Dispatcher`."""
        if copy := self._chosen.pop(request_id, None):
            copy.done(request_id, gave_up, now_s())

    def lost(self, worker: int) -> None:
        """See `Dispatcher`."""
        copy, self._copies[worker] = self._copies[worker], None
        self._chosen = {request_id: other for request_id, other in self._chosen.items() if other is not copy}

    def restored(self, worker: int) -> None:
        """See `Dispatcher`."""
        if self._copies[worker] is None:
            self._copies[worker] = self._new_copy()

    def free_in_ms(self) -> tuple[float, ...]:
        """See `Dispatcher`."""
        at_s = now_s()
        return tuple([math.inf if copy is None else copy.free_in_ms(at_s) for copy in self._copies])

    def begin_in_ms(self) -> tuple[float, ...] | None:
        """See `Dispatcher`."""
        if self._batching is None:
            return None
        at_s = now_s()
        return tuple([math.inf if copy is None else copy.begin_in_ms(at_s) for copy in self._copies])

    def loaded(self, option: ModeOption) -> ModeOption:
        """See `Dispatcher`. Only of a batch is a request served among others."""
        if self._batching is None or option.generation is None or not option.cloud_ms:
            return option
        at_s, generation = now_s(), option.generation
        alive = [copy for copy in self._copies if copy is not None]
        if not alive:
            return option
        least = min(alive, key=lambda copy: copy.free_in_ms(at_s))
        serve_ms, first_ms = least.serve_ms(generation, at_s)
        alone_ms = generation.alone_ms()
        slower = max(0.0, serve_ms / alone_ms - 1) if alone_ms else 0.0
        cloud_ms = option.cloud_ms * (1 + SLOWER * math.ceil(slower / SLOWER - 1e-6))
        tail_ms = cloud_ms * (1 - first_ms / serve_ms) if serve_ms else 0.0
        return replace(option, cloud_ms=cloud_ms, added_ms=generation.added_ms(self._batching.slots), tail_ms=tail_ms)

    def schedule(self, worker: int) -> Schedule[int] | ContinuousBatch[int] | None:
        """What the worker is thought to serve and to have queued; None if it is lost."""
        copy = self._copies[worker]
        return None if copy is None else copy.as_of(now_s())


class _Copy(Protocol):
    """What is known of one worker, and the requests that are on their way to it. See `LeastLoaded`'s methods."""

    def promise(self, request_id: int, job: CloudJob) -> None: ...

    def arrived(self, request_id: int, at_s: float) -> None: ...

    def done(self, request_id: int, gave_up: bool, at_s: float) -> None: ...

    def as_of(self, at_s: float) -> Schedule[int] | ContinuousBatch[int]: ...

    def predict(self, request_id: int, arrives_s: float, at_s: float) -> float: ...

    def free_in_ms(self, at_s: float) -> float: ...

    def begin_in_ms(self, at_s: float) -> float: ...

    def serve_ms(self, generation: Generation, at_s: float) -> tuple[float, float]:
        """About how long a sequence takes among those that the worker serves now, and until its first token."""
        ...


class _ContinuousCopy:
    """The batch of one worker as far as it is known, and the requests that are on their way to it.

    It ends requests by itself, when their last token is there: so their answers need not be told.
    """

    def __init__(self, rules: ContinuousBatching) -> None:
        self._batch: ContinuousBatch[int] = ContinuousBatch(rules)
        self._promised: dict[int, CloudJob] = {}
        self._promised_ms = 0.0
        self._arrives_s: dict[int, float] = {}  # as last predicted
        self._ready_s: dict[int, float] = {}  # of those whose last token is made in the step that is on

    def promise(self, request_id: int, job: CloudJob) -> None:
        if self._batch.rules.too_long(job.generation) is None:
            self._promised[request_id] = job
            self._promised_ms += job.generation.added_ms(self._batch.rules.slots)

    def arrived(self, request_id: int, at_s: float) -> None:
        if job := self._take_promise(request_id):
            self._advance(at_s)
            self._batch.add(request_id, job.generation, job.deadline_s, at_s)

    def done(self, request_id: int, gave_up: bool, at_s: float) -> None:
        if self._take_promise(request_id) or gave_up:
            return  # what was given up is served all the same
        self._advance(at_s)
        self._ready_s.pop(request_id, None)
        self._batch.remove(request_id)

    def as_of(self, at_s: float) -> ContinuousBatch[int]:
        self._advance(at_s)
        return self._batch

    def predict(self, request_id: int, arrives_s: float, at_s: float) -> float:
        self._advance(at_s)
        if request_id in self._ready_s:
            return self._ready_s[request_id]
        if request_id in self._promised:
            self._arrives_s[request_id] = arrives_s
        elif request_id not in self._batch:
            return at_s  # it has ended, and its answer is on the way
        later = [
            Later(when_s, number, (job := self._promised[number]).generation, job.deadline_s)
            for number, when_s in self._arrives_s.items()
        ]
        return self._batch.ready_s(request_id, at_s, later)

    def free_in_ms(self, at_s: float) -> float:
        self._advance(at_s)
        return self._batch.work_ms(at_s) + self._promised_ms

    def begin_in_ms(self, at_s: float) -> float:
        self._advance(at_s)
        return self._batch.begin_in_ms(at_s, len(self._promised))

    def serve_ms(self, generation: Generation, at_s: float) -> tuple[float, float]:
        self._advance(at_s)
        return self._batch.serve_ms(generation), self._batch.first_ms(generation)

    def _advance(self, at_s: float) -> None:
        if not self._batch.busy and not self._ready_s:
            return
        self._batch.advance(at_s)
        self._batch.take_admitted()
        self._batch.take_firsts(math.inf)
        if self._ready_s:
            self._ready_s = {number: end_s for number, end_s in self._ready_s.items() if end_s > at_s}
        for served in self._batch.take_done(math.inf):
            if served.end_s > at_s:
                self._ready_s[served.item] = served.end_s

    def _take_promise(self, request_id: int) -> CloudJob | None:
        self._arrives_s.pop(request_id, None)
        job = self._promised.pop(request_id, None)
        if job is not None:
            self._promised_ms -= job.generation.added_ms(self._batch.rules.slots)
            if not self._promised:  # rounding errors don't add up
                self._promised_ms = 0.0
        return job


class _WorkerCopy:
    """The schedule of one worker as far as it is known, and the requests that are on their way to it."""

    def __init__(self, batch: int) -> None:
        self._schedule: Schedule[int] = Schedule(batch)
        self._batch = batch
        self._promised: dict[int, CloudJob] = {}
        self._arrives_s: dict[int, float] = {}  # as last predicted
        self._given_up: set[int] = set()  # but still in the queue or in service
        self._awaited: set[int] = set()  # in service, and their agents wait for them
        self._idle_since_s = 0.0
        self._queue_ms: float | None = 0.0  # of all queued and promised work, begun at `_begin_s`; None: not known
        self._begin_s = 0.0

    def promise(self, request_id: int, job: CloudJob) -> None:
        self._promised[request_id] = job
        self._queue_ms = self._queue_ms + job.cost_ms if self._batch == 1 and self._queue_ms is not None else None

    def arrived(self, request_id: int, at_s: float) -> None:
        job = self._take_promise(request_id)
        if job is None:
            return
        schedule = self.as_of(at_s)
        if not schedule.busy:
            self._idle_since_s = at_s
        schedule.add(request_id, job)
        if self._batch > 1:
            self._queue_ms = None

    def done(self, request_id: int, gave_up: bool, at_s: float) -> None:
        if self._take_promise(request_id):
            self._queue_ms = None
            return
        schedule = self.as_of(at_s)
        if gave_up:  # the worker serves it, and nobody tells when that ends
            self._given_up.add(request_id)
            self._awaited.discard(request_id)
        elif request_id in self._awaited:
            self._awaited.remove(request_id)
            if not self._awaited:
                self._end(at_s)
        else:  # it was served before the batch that was thought to be in service
            schedule.remove(request_id)
            if len(self._awaited) == len(schedule.serving):
                schedule.put_back()
                self._end(at_s)
            self._queue_ms = None

    def as_of(self, at_s: float) -> Schedule[int]:
        """The schedule with all batches begun that the worker should have begun by `at_s`."""
        schedule = self._schedule
        while True:
            if schedule.busy:
                if self._awaited or schedule.busy_until_s >= at_s:
                    return schedule
                self._end(schedule.busy_until_s)
            if not len(schedule):
                return schedule
            self._awaited = set(schedule.begin(self._idle_since_s)) - self._given_up
            self._queue_ms = None

    def predict(self, request_id: int, arrives_s: float, at_s: float) -> float:
        schedule = self.as_of(at_s)
        if request_id in self._promised:
            self._arrives_s[request_id] = arrives_s
        later = [(when_s, number, self._promised[number]) for number, when_s in self._arrives_s.items()]
        return schedule.ready_s(request_id, at_s, later)

    def free_in_ms(self, at_s: float) -> float:
        schedule = self.as_of(at_s)
        begin_s = schedule.busy_until_s if schedule.busy and schedule.busy_until_s > at_s else at_s
        if self._queue_ms is None or (self._batch > 1 and begin_s != self._begin_s):  # batches change with time
            self._queue_ms, self._begin_s = schedule.queue_ms(begin_s, self._promised), begin_s
        return (begin_s - at_s) * 1e3 + self._queue_ms

    def begin_in_ms(self, at_s: float) -> float:
        return self.free_in_ms(at_s)

    def serve_ms(self, generation: Generation, at_s: float) -> tuple[float, float]:
        return generation.alone_ms(), generation.alone_ms()

    def _take_promise(self, request_id: int) -> CloudJob | None:
        self._arrives_s.pop(request_id, None)
        return self._promised.pop(request_id, None)

    def _end(self, at_s: float) -> None:
        if self._given_up:
            self._given_up.difference_update(self._schedule.serving)
        self._schedule.end()
        self._awaited = set()
        self._idle_since_s = at_s
        self._queue_ms = None
