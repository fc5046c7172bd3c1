"""In which order and in which batches a cloud worker serves requests.

The worker serves by this code, and the dispatcher predicts by it. It is sans-IO: the caller passes the time.
"""

from bisect import insort
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Generic, NamedTuple, TypeVar

from allocator.online.interfaces import CloudJob

T = TypeVar("T")
ROUNDING_S = 1e-6


class _Entry(NamedTuple, Generic[T]):
    """One job. Entries sort in EDF order; of equal deadlines the shortest job goes first, then the first that came."""

    deadline_s: float
    cost_ms: float
    tie: int
    job: CloudJob
    item: T


class Schedule(Generic[T]):
    """The queue of one worker, and the batch in service.

    Order: earliest deadline first (EDF), which meets all deadlines if any order does (Jackson 1955). Jobs that can no
    longer meet their deadline, even if begun at once, are served last, so that one late job doesn't make others late.
    A batch is the next job and the jobs right behind it that have the same decoder.

    Args:
        batch: the most jobs that are served together.
    """

    def __init__(self, batch: int = 1) -> None:
        self._batch = batch
        self._queue: list[_Entry[T]] = []
        self._serving: list[_Entry[T]] = []
        self._ties = 0
        self.busy = False  # a batch is in service
        self.busy_until_s = 0.0  # when it should end

    def __len__(self) -> int:
        """Jobs in the queue, without those in service."""
        return len(self._queue)

    @property
    def queued(self) -> list[T]:
        """The jobs in the queue, in EDF order."""
        return [entry.item for entry in self._queue]

    @property
    def serving(self) -> list[T]:
        """The batch in service; empty while the worker is idle."""
        return [entry.item for entry in self._serving]

    def add(self, item: T, job: CloudJob) -> None:
        """Queue a job; `item` is the caller's name for it."""
        self._ties += 1
        insort(self._queue, _Entry(job.deadline_s, job.cost_ms, self._ties, job, item))

    def remove(self, item: T) -> None:
        """Take a job out of the queue, if it is there."""
        self._queue = [entry for entry in self._queue if entry.item != item]

    def clear(self) -> int:
        """Empty the queue; returns how many jobs it had."""
        cleared = len(self._queue)
        self._queue = []
        return cleared

    def begin(self, at_s: float) -> list[T]:
        """Begin to serve the next batch. The queue must not be empty."""
        self._serving = _take_batch(self._queue, at_s, self._batch)
        self.busy = True
        self.busy_until_s = at_s + batch_ms([entry.job for entry in self._serving]) / 1e3
        return self.serving

    def end(self) -> None:
        """The batch in service has ended."""
        self._serving, self.busy = [], False

    def put_back(self) -> None:
        """The batch that was thought to be in service is still in the queue."""
        for entry in self._serving:
            insort(self._queue, entry)
        self.end()

    def left_ms(self, at_s: float) -> float:
        """How long the batch in service still takes; 0 if there is none or it takes longer than expected."""
        return max(0.0, self.busy_until_s - at_s) * 1e3 if self.busy else 0.0

    def before_ms(self, deadline_s: float, at_s: float) -> float:
        """Queued work that is served before a job with this deadline."""
        return sum(e.cost_ms for e in self._queue if e.deadline_s <= deadline_s and not _is_lost(e, at_s))

    def blocking_ms(self, deadline_s: float, at_s: float) -> float:
        """Work that an idle worker would begin now although a job with this deadline is more urgent."""
        if not self._queue:
            return 0.0
        first = self._queue[_next(self._queue, at_s)]
        return first.cost_ms if first.deadline_s > deadline_s or _is_lost(first, at_s) else 0.0

    def queue_ms(self, at_s: float, later: Mapping[T, CloudJob]) -> float:
        """How long the worker takes for all queued jobs if it begins at `at_s`.

        Args:
            later: jobs that have not arrived, counted as if they had, and their items.
        """
        if self._batch == 1:  # then the order doesn't matter
            return sum(entry.cost_ms for entry in self._queue) + sum(job.cost_ms for job in later.values())
        queue = list(self._queue)
        for tie, (item, job) in enumerate(later.items(), self._ties + 1):
            insort(queue, _Entry(job.deadline_s, job.cost_ms, tie, job, item))
        end_s = at_s
        while queue:
            end_s += batch_ms([entry.job for entry in _take_batch(queue, end_s, self._batch)]) / 1e3
        return (end_s - at_s) * 1e3

    def ready_s(self, item: T, at_s: float, later: Sequence[tuple[float, T, CloudJob]] = ()) -> float:
        """When the answer of a job is ready.

        Args:
            later: jobs that arrive after `at_s`: when, and as for `add`.

        Raises:
            KeyError: no such job is in service, in the queue or among the later ones.
        """
        end_s = max(at_s, self.busy_until_s) if self.busy else at_s
        if any(entry.item == item for entry in self._serving):
            return end_s
        if not self._queue and len(later) == 1 and later[0][1] == item:  # the job is alone: most cases on idle workers
            return max(end_s, later[0][0]) + batch_ms([later[0][2]]) / 1e3
        queue = list(self._queue)
        coming = [  # the next one to arrive is the last
            (arrives_s, _Entry(job.deadline_s, job.cost_ms, tie, job, name))
            for tie, (arrives_s, name, job) in enumerate(sorted(later, key=itemgetter(0)), self._ties + 1)
        ][::-1]
        while queue or coming:
            if not queue:
                end_s = max(end_s, coming[-1][0])
            while coming and coming[-1][0] <= end_s:
                insort(queue, coming.pop()[1])
            batch = _take_batch(queue, end_s, self._batch)
            end_s += batch_ms([entry.job for entry in batch]) / 1e3
            for entry in batch:
                if entry.item == item:
                    return end_s
        raise KeyError(item)


def batch_ms(jobs: Sequence[CloudJob]) -> float:
    """How long a batch occupies its worker: prefills one after the other, then all decode together."""
    if len(jobs) == 1:
        return jobs[0].cost_ms
    return sum(job.prefill_ms for job in jobs) + max((job.decode_ms for job in jobs), default=0.0)


def _take_batch(queue: list[_Entry[T]], at_s: float, most: int) -> list[_Entry[T]]:
    """Remove the next batch from a queue in EDF order."""
    taken = [queue.pop(_next(queue, at_s))]
    while queue and len(taken) < most:
        index = _next(queue, at_s)
        if queue[index].job.decoder != taken[0].job.decoder:
            break
        taken.append(queue.pop(index))
    return taken


def _next(queue: Sequence[_Entry[T]], at_s: float) -> int:
    """Index of the next job to serve: the first that can meet its deadline; the first of all if none can."""
    for index, entry in enumerate(queue):
        if not _is_lost(entry, at_s):
            return index
    return 0


def _is_lost(entry: _Entry[T], at_s: float) -> bool:
    """Whether a job begun at `at_s` ends after its deadline."""
    return entry.deadline_s - entry.cost_ms / 1e3 < at_s - ROUNDING_S
