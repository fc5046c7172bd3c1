"""A cloud worker: queues what has arrived, serves it one at a time, holds hedges until their last safe moment.

It knows nothing of sockets: `cloud.reception` receives frames for it live, the simulated link calls it directly.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

from cloud.backlog import Backlog
from cloud.frames import CloudStages, Header, Kind
from cloud.holds import Holds
from cloud.runtime import CloudRuntime
from models.clock import now_s

# An answer from a hedge starts so much earlier than it must: for its own way back, and the cloud's own unpunctuality.
HOLD_MARGIN_S = 0.010

Reply = Callable[[Kind, Header, CloudStages], Awaitable[None]]
"""Sends the requester a receipt or an answer. Raises OSError if it has gone."""


@dataclass(slots=True)
class Job:
    """A request that waits for the worker.

    Attributes:
        key: the same for a request and the hedge that went ahead of it, and for nothing else.
        received_s: when its last byte was there.
    """

    key: Hashable
    header: Header
    received_s: float
    reply: Reply


class QueueFull(Exception):
    """The worker has no room for another request."""


class Worker:
    """One decoder behind one queue.

    `counts` has `served`, `forgotten` (still queued at the end of a turn), `refused_queue_full`, `unanswered` for
    answers whose agent was gone, and of hedges `hedges_held`, `hedges_served`, `hedges_dropped` (for want of room).
    """

    def __init__(self, runtime: CloudRuntime, queue_limit: int) -> None:
        self.runtime = runtime
        self.counts: Counter[str] = Counter()
        self._backlog: Backlog[Job] = Backlog(queue_limit)
        self._queue_limit = queue_limit
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
            hedge.header, hedge.received_s = job.header, job.received_s
        elif not self._enqueue(job):
            self.counts["refused_queue_full"] += 1
            raise QueueFull
        self._release_due()
        try:
            await job.reply(Kind.RECEIPT, job.header, CloudStages(job.received_s, mode=job.header.mode))
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
        """Serve queued requests one after the other, for ever."""
        while True:
            await self._backlog.filled()
            self._release_due()  # what can't wait until the next job is done goes first
            self._idle.clear()
            try:
                await self._serve(self._backlog.next())
            finally:
                self._free_s = now_s()
                self._idle.set()

    async def _serve(self, job: Job) -> None:
        started_s = now_s()
        expected_ms = self.runtime.expected_ms(job.header)
        from_hedge = job.header.kind is Kind.HEDGE
        if from_hedge and self._queued_hedges.pop(job.key, None) is None:
            return
        self._free_s = started_s + expected_ms / 1e3
        if from_hedge:
            self._served_from_hedge.add(job.key)
            self.counts["hedges_served"] += 1
            try:  # a receipt that names the hedge's mode: the rest of the cache can stay where it is
                await job.reply(Kind.RECEIPT, job.header, CloudStages(job.received_s, mode=job.header.mode))
            except OSError:
                pass
        await self.runtime.prefill(job.header)
        prefilled_s = now_s()
        await self.runtime.decode(job.header)
        stages = CloudStages(
            received_s=job.received_s,
            queue_ms=(started_s - job.received_s) * 1e3,
            prefill_ms=(prefilled_s - started_s) * 1e3,
            decode_ms=(now_s() - prefilled_s) * 1e3,
            mode=job.header.mode,
        )
        try:
            await job.reply(Kind.ANSWER, job.header, stages)
            self.counts["served"] += 1
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
