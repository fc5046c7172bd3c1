"""A cloud worker: queues what has arrived, serves it batch by batch, holds hedges until their last safe moment.

It knows nothing of sockets: `cloud.reception` receives frames for it live, the simulated link calls it directly.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any

from cloud.backlog import Backlog
from cloud.frames import CloudStages, Header, Kind
from cloud.holds import Holds
from cloud.runtime import CloudRuntime, Unservable
from models.clock import now_s

# An answer from a hedge starts so much earlier than it must: for its own way back, and the cloud's own unpunctuality.
HOLD_MARGIN_S = 0.010

Reply = Callable[[Kind, Header, CloudStages], Awaitable[None]]
"""Sends the requester a receipt, an answer or a refusal. Raises OSError if it has gone."""


@dataclass(slots=True)
class Job:
    """A request that waits for the worker.

    Attributes:
        key: the same for a request and the hedge that went ahead of it, and for nothing else.
        received_s: when its last byte was there.
        content: of its body, for the runtime.
        first_byte_s: when its header was there.
    """

    key: Hashable
    header: Header
    received_s: float
    reply: Reply
    content: Any = None
    first_byte_s: float = 0.0


class QueueFull(Exception):
    """The worker has no room for another request."""


class Worker:
    """One queue, and a runtime that serves up to `batch` requests of one decoder at a time.

    `counts` has `served`, `forgotten` (still queued at the end of a turn), `refused_queue_full`, `refused_unservable`,
    `unanswered` for answers whose agent was gone, and of hedges `hedges_held`, `hedges_served`, `hedges_dropped` (for
    want of room).
    """

    def __init__(self, runtime: CloudRuntime, queue_limit: int, batch: int = 1) -> None:
        self.runtime = runtime
        self.counts: Counter[str] = Counter()
        self._backlog: Backlog[Job] = Backlog(queue_limit)
        self._queue_limit = queue_limit
        self._batch = batch
        self._idle = asyncio.Event()
        self._idle.set()
        self._free_s = 0.0  # when the request being served should be done
        self._holds: Holds[Job] = Holds()
        self._queued_hedges: dict[Hashable, Job] = {}
        self._served_from_hedge: set[Hashable] = set()
        self._check: asyncio.TimerHandle | None = None

    async def submit(self, job: Job) -> None:
        """A request has arrived whole: send its receipt and queue it, or put it in the place of its queued hedge.

        If it has already been answered from its hedge, it is dropped.

        Raises:
            QueueFull: and counted.
        """
        if job.key in self._served_from_hedge:
            self._served_from_hedge.discard(job.key)
            return
        self._holds.drop(job.key)
        hedge = self._queued_hedges.pop(job.key, None)
        if hedge is not None:
            hedge.header, hedge.received_s, hedge.content = job.header, job.received_s, job.content
            hedge.first_byte_s = job.first_byte_s
        elif not self._enqueue(job):
            self.counts["refused_queue_full"] += 1
            raise QueueFull
        self._release_due()
        try:
            await job.reply(Kind.RECEIPT, job.header, _receipt(job))
        except OSError:
            pass  # serving it will show, and count, that nobody waits

    def hold(self, job: Job) -> None:
        """A hedge has come: if its request isn't whole by the last safe moment, answer from this."""
        if len(self._holds) >= self._queue_limit:
            self.counts["hedges_dropped"] += 1
            return
        self.counts["hedges_held"] += 1
        self._holds.add(job.key, job, job.header.deadline_s, self.runtime.expected_ms(job.header))
        self._release_due()

    def withdraw(self, key: Hashable) -> None:
        """Nobody wants this request any more, or the rest of it will never come."""
        self._holds.drop(key)
        self._queued_hedges.pop(key, None)  # its turn will come, and find that nobody wants it
        self._served_from_hedge.discard(key)

    async def settle(self) -> None:
        """Forget what waits and finish the request being served, so that the next turn finds the worker idle."""
        self._holds = Holds()
        if forgotten := self._backlog.clear():
            self.counts["forgotten"] += forgotten
        self._queued_hedges.clear()
        await self._idle.wait()
        self._served_from_hedge.clear()

    async def serve_queue(self) -> None:
        """Serve queued requests, for ever."""
        while True:
            await self._backlog.filled()
            self._release_due()  # what can't wait until the next job is done goes first
            self._idle.clear()
            try:
                await self._serve(self._next_batch())
            finally:
                self._free_s = now_s()
                self._idle.set()

    def _next_batch(self) -> list[Job]:
        """What is served next, with those right behind it that can be decoded together with it."""
        jobs = [self._backlog.next()]
        if self._batch > 1:
            decoder = self.runtime.decoder_of(jobs[0].header)
            while len(jobs) < self._batch and (job := self._backlog.peek()) is not None:
                if self.runtime.decoder_of(job.header) != decoder:
                    break
                jobs.append(self._backlog.next())
        return [job for job in jobs if job.header.kind is not Kind.HEDGE or self._still_wanted(job)]

    async def _serve(self, jobs: list[Job]) -> None:
        """Prefill one after the other, decode together, answer each."""
        self._free_s = now_s() + sum(self.runtime.expected_ms(job.header) for job in jobs) / 1e3
        prefilled: list[tuple[Job, Any, float]] = []
        for job in jobs:
            if job.header.kind is Kind.HEDGE:
                await self._begin_hedge(job)
            began_s = now_s()
            try:
                start = await self.runtime.prefill(job.header, job.content)
            except Unservable as error:
                await self._refuse(job, error)
                continue
            job.content = None  # a cache is large, and what goes on from it has it
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
            # Others' prefills count as waiting for the worker.
            queue_ms = (began_s - job.received_s) * 1e3 - prefill_ms
            stages = CloudStages(job.received_s, queue_ms, prefill_ms, decode_ms, job.header.mode, text)
            try:
                await job.reply(Kind.ANSWER, job.header, stages)
                self.counts["served"] += 1
            except OSError:
                self.counts["unanswered"] += 1

    def _still_wanted(self, hedge: Job) -> bool:
        return self._queued_hedges.pop(hedge.key, None) is not None

    async def _begin_hedge(self, job: Job) -> None:
        """Tell the agent, by a receipt that names the hedge's mode, that the rest of the cache can stay where it is."""
        self._served_from_hedge.add(job.key)
        self.counts["hedges_served"] += 1
        try:
            await job.reply(Kind.RECEIPT, job.header, _receipt(job))
        except OSError:
            pass

    async def _refuse(self, job: Job, error: Unservable) -> None:
        self.counts["refused_unservable"] += 1
        try:
            await job.reply(Kind.REFUSAL, job.header, CloudStages(job.received_s, text=f"unservable: {error}"))
        except OSError:
            self.counts["unanswered"] += 1

    def _enqueue(self, job: Job) -> bool:
        """Whether there was room."""
        return self._backlog.put(job, job.header.deadline_s, self.runtime.expected_ms(job.header))

    def _release_due(self) -> None:
        """Queue the hedges that can't wait any longer, and look again when the next one can't."""
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
            # Earlier than that only new work can make one due, and whoever brings or begins new work looks again.
            self._check = asyncio.get_running_loop().call_at(start_s - HOLD_MARGIN_S, self._release_due)

    def _busy_until_s(self, deadline_s: float) -> float:
        """When something with this deadline would be begun if it waited any longer; and a margin."""
        now = now_s()
        other_ms = self._backlog.before_ms(deadline_s)
        if self._free_s <= now and not other_ms:
            other_ms = self._backlog.blocking_ms(deadline_s)
        return max(now, self._free_s) + other_ms / 1e3 + HOLD_MARGIN_S


def _receipt(job: Job) -> CloudStages:
    return CloudStages(job.received_s, mode=job.header.mode, first_byte_s=job.first_byte_s)
