"""A cloud worker: queues requests, serves them, and holds hedges until their last safe moment.

`Worker` serves closed batches; `cloud.continuous` has one whose batches change with every step.

It knows nothing of sockets: live, `cloud.reception` passes it what arrives; simulated, the fluid link does.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from cloud.frames import CloudStages, Header, Kind
from cloud.holds import Holds
from cloud.runtime import CloudRuntime, Unservable
from cloud.schedule import Schedule
from models.clock import now_s

# The service of a hedge begins this much earlier than it must, for the answer's way back and late timers in the cloud.
HOLD_MARGIN_S = 0.010

Reply = Callable[[Kind, Header, CloudStages], Awaitable[None]]
"""Sends the requester a receipt, an answer or a refusal. Raises OSError if it has gone."""


@dataclass(slots=True, eq=False)
class Job:
    """A request, or the hedge of one, that waits for the worker. Jobs are equal only to themselves.

    Attributes:
        key: the same for a request and its hedge, different for all other requests.
        received_s: when its last byte arrived, as loop time.
        content: its body as the runtime's `Body` decoded it.
        first_byte_s: when its header arrived, as loop time.
    """

    key: Hashable
    header: Header
    received_s: float
    reply: Reply
    content: Any = None
    first_byte_s: float = 0.0


class QueueFull(Exception):
    """The worker has no room for another request."""


class AnyWorker(ABC):
    """One queue, whoever serves it.

    `counts` has `served`, `forgotten` (still queued when a turn ended or the link was lost), `refused_queue_full`,
    `refused_unservable`, `unanswered` (the agent had gone), `hedges_held`, `hedges_served` and `hedges_dropped` (there
    was no room).

    Args:
        queue_limit: the most requests that wait, and the most hedges that are held; further ones are refused.
    """

    def __init__(self, runtime: CloudRuntime, queue_limit: int) -> None:
        self.runtime = runtime
        self.counts: Counter[str] = Counter()
        self._queue_limit = queue_limit
        self._idle = asyncio.Event()
        self._idle.set()
        self._holds: Holds[Job] = Holds()
        self._queued_hedges: dict[Hashable, Job] = {}
        self._served_from_hedge: set[Hashable] = set()
        self._check: asyncio.TimerHandle | None = None

    def check(self) -> None:  # noqa: B027 (most lack nothing)
        """Raise what keeps the worker from serving at all, before it is asked to."""

    @abstractmethod
    async def serve_queue(self) -> None:
        """Serve queued requests until cancelled."""

    @abstractmethod
    def _enqueue(self, job: Job) -> bool:
        """Whether there was room in the queue."""

    @abstractmethod
    def _dequeue(self, job: Job) -> None:
        """Take a job out of the queue, if it is there."""

    @abstractmethod
    def _clear(self) -> int:
        """Empty the queue; returns how many jobs it had."""

    @abstractmethod
    def _busy_until_s(self, deadline_s: float) -> float:
        """When a job with this deadline would begin if it waited any longer, plus a margin."""

    async def submit(self, job: Job) -> None:
        """A whole request has arrived: queue it instead of its hedge, and send its receipt.

        It is dropped if it has already been answered from its hedge.

        Raises:
            QueueFull: the queue has no room; this is counted.
        """
        if job.key in self._served_from_hedge:
            self._served_from_hedge.discard(job.key)
            return
        self._holds.drop(job.key)
        self._drop_queued_hedge(job.key)
        if not self._enqueue(job):
            self.counts["refused_queue_full"] += 1
            raise QueueFull
        self._release_due()
        try:
            await job.reply(Kind.RECEIPT, job.header, _receipt(job))
        except OSError:
            pass  # counted when the answer can't be sent either

    def hold(self, job: Job) -> None:
        """A hedge has arrived: it is served if its request hasn't arrived whole by the last safe moment."""
        if len(self._holds) >= self._queue_limit:
            self.counts["hedges_dropped"] += 1
            return
        self.counts["hedges_held"] += 1
        self._holds.add(job.key, job, job.header.deadline_s, self.runtime.job_of(job.header).cost_ms)
        self._release_due()

    def withdraw(self, key: Hashable) -> None:
        """The request was cancelled, or the rest of it will never arrive: forget its hedge."""
        self._holds.drop(key)
        self._drop_queued_hedge(key)
        self._served_from_hedge.discard(key)

    async def settle(self) -> None:
        """Forget all queued requests and finish those in service, so that the next turn finds the worker idle."""
        self.forget()
        await self._idle.wait()
        self._served_from_hedge.clear()

    def forget(self) -> None:
        """Forget all queued requests; those in service go on."""
        self._holds = Holds()
        if forgotten := self._clear():
            self.counts["forgotten"] += forgotten
        self._queued_hedges.clear()

    async def _stop_transfer(self, job: Job) -> None:
        """Tell the agent, by a receipt that names the hedge's mode, to stop sending the cache."""
        try:
            await job.reply(Kind.RECEIPT, job.header, _receipt(job))
        except OSError:
            pass

    async def _begin_answer(self, job: Job) -> None:
        """The first token is sent as soon as it is there."""
        try:
            await job.reply(Kind.FIRST_TOKEN, job.header, CloudStages(job.received_s, mode=job.header.mode, tokens=1))
        except OSError:
            pass  # counted when the answer can't be sent either

    async def _refuse(self, job: Job, error: Unservable) -> None:
        self.counts["refused_unservable"] += 1
        try:
            await job.reply(Kind.REFUSAL, job.header, CloudStages(job.received_s, text=f"unservable: {error}"))
        except OSError:
            self.counts["unanswered"] += 1

    def _drop_queued_hedge(self, key: Hashable) -> None:
        if hedge := self._queued_hedges.pop(key, None):
            self._dequeue(hedge)

    def _take_hedges(self, jobs: Iterable[Job]) -> None:
        """These jobs begin to be served: a request whose hedge is among them is dropped when it arrives."""
        hedges = {job.key for job in jobs if self._queued_hedges.pop(job.key, None)}
        if hedges:
            self._served_from_hedge |= hedges
            self.counts["hedges_served"] += len(hedges)

    def _release_due(self) -> None:
        """Queue the hedges that have reached their last safe moment, and set a timer for the next one."""
        if self._check is not None:
            self._check.cancel()
            self._check = None
        if not len(self._holds):
            return
        for job in self._holds.due(self._busy_until_s):
            if self._enqueue(job):
                self._queued_hedges[job.key] = job
            else:
                self.counts["hedges_dropped"] += 1
        start_s = self._holds.next_start_s()
        if start_s is not None:
            # Before that, only new work can make a hedge due, and this method is called for all new work.
            self._check = asyncio.get_running_loop().call_at(start_s - HOLD_MARGIN_S, self._release_due)


class Worker(AnyWorker):
    """Serves its queue by `cloud.schedule`, batch by batch.

    Args:
        batch: the most requests that are decoded together.
    """

    def __init__(self, runtime: CloudRuntime, queue_limit: int, batch: int = 1) -> None:
        super().__init__(runtime, queue_limit)
        self.schedule: Schedule[Job] = Schedule(batch)
        self._filled = asyncio.Event()

    async def serve_queue(self) -> None:
        while True:
            while not len(self.schedule):
                self._filled.clear()
                await self._filled.wait()
            self._release_due()  # hedges that can't wait until the next batch ends are queued before it begins
            self._idle.clear()
            try:
                await self._serve(self._next_batch())
            finally:
                self.schedule.end()
                self._idle.set()

    def _next_batch(self) -> list[Job]:
        jobs = self.schedule.begin(now_s())
        self._take_hedges(jobs)
        return jobs

    async def _serve(self, jobs: list[Job]) -> None:
        """Prefill each job, decode all together, and answer each."""
        prefilled: list[tuple[Job, Any, float]] = []
        for job in jobs:
            if job.header.kind is Kind.HEDGE:
                await self._stop_transfer(job)
            began_s = now_s()
            try:
                start = await self.runtime.prefill(job.header, job.content)
            except Unservable as error:
                await self._refuse(job, error)
                continue
            job.content = None  # free the memory of a cache, which `start` has taken over
            prefilled.append((job, start, (now_s() - began_s) * 1e3))
        if not prefilled:
            return
        began_s = now_s()
        try:
            texts = await self.runtime.decode([(job.header, start) for job, start, _ in prefilled])
        except Unservable as error:
            for job, _, _ in prefilled:
                await self._refuse(job, error)
            return
        decode_ms = (now_s() - began_s) * 1e3
        for (job, _, prefill_ms), text in zip(prefilled, texts, strict=True):
            # The prefills of other jobs of the batch count as time in the queue.
            queue_ms = (began_s - job.received_s) * 1e3 - prefill_ms
            stages = CloudStages(job.received_s, queue_ms, prefill_ms, decode_ms, job.header.mode, text)
            try:
                await job.reply(Kind.ANSWER, job.header, stages)
                self.counts["served"] += 1
            except OSError:
                self.counts["unanswered"] += 1

    def _enqueue(self, job: Job) -> bool:
        if len(self.schedule) >= self._queue_limit:
            return False
        self.schedule.add(job, self.runtime.job_of(job.header))
        self._filled.set()
        return True

    def _dequeue(self, job: Job) -> None:
        self.schedule.remove(job)

    def _clear(self) -> int:
        return self.schedule.clear()

    def _busy_until_s(self, deadline_s: float) -> float:
        at_s = now_s()
        other_ms = self.schedule.before_ms(deadline_s, at_s)
        left_ms = self.schedule.left_ms(at_s)
        if not left_ms and not other_ms:
            other_ms = self.schedule.blocking_ms(deadline_s, at_s)
        return at_s + (left_ms + other_ms) / 1e3 + HOLD_MARGIN_S


def _receipt(job: Job) -> CloudStages:
    return CloudStages(job.received_s, mode=job.header.mode, first_byte_s=job.first_byte_s)
