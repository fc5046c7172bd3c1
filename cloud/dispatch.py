"""Which worker a request goes to, and when each worker will be free."""

import math

from allocator.online.interfaces import NO_WORKER, CloudJob
from cloud.schedule import Schedule
from models.clock import now_s


class LeastLoaded:
    """Sends each request to the living worker with the least work left; the lowest number among equals.

    Implements `allocator.online.interfaces.Dispatcher` with a copy of each worker's schedule, which the allocator's
    messages drive. The copy can differ from the worker in three ways: messages take time; a hedge that is served before
    its request has arrived is known only from the start of its service, and counts with the cost of the request; and a
    request that is answered earlier than the copy has begun it shows that the copy served in another order, after which
    the copy starts again with its next batch.

    Args:
        batch: the most requests that a worker serves together.
    """

    def __init__(self, workers: int, batch: int = 1) -> None:
        self._batch = batch
        self._copies: list[_WorkerCopy | None] = [_WorkerCopy(batch) for _ in range(workers)]  # None: lost
        self._chosen: dict[int, _WorkerCopy] = {}

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
            self._copies[worker] = _WorkerCopy(self._batch)

    def free_in_ms(self) -> tuple[float, ...]:
        """See `Dispatcher`."""
        at_s = now_s()
        return tuple([math.inf if copy is None else copy.free_in_ms(at_s) for copy in self._copies])

    def schedule(self, worker: int) -> Schedule[int] | None:
        """What the worker is thought to serve and to have queued; None if it is lost."""
        copy = self._copies[worker]
        return None if copy is None else copy.as_of(now_s())


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
