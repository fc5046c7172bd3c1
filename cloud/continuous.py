"""A cloud worker that batches by iteration: requests join and leave between two steps."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from cloud.batching import ContinuousBatch, ContinuousBatching, Served
from cloud.frames import CloudStages, Kind
from cloud.holds import Holds
from cloud.runtime import ProfileCloud, Unservable
from cloud.worker import HOLD_MARGIN_S, AnyWorker, Job
from models.clock import SHORT_S, STEP, now_s

# A worker that is woken so late had no time to make steps meanwhile: it was frozen.
STALL_S = 0.1


class ContinuousWorker(AnyWorker):
    """Serves its queue by `cloud.batching`, in the times of profiles.

    The steps' moments are reckoned, not waited for one by one, so what timers are late by doesn't add up.

    Args:
        queue_limit: as for `AnyWorker`, beside the requests that fill the slots.
    """

    def __init__(self, runtime: ProfileCloud, queue_limit: int, rules: ContinuousBatching) -> None:
        super().__init__(runtime, queue_limit)
        self.batch: ContinuousBatch[Job] = ContinuousBatch(rules)
        self._profiles = runtime
        self._room = queue_limit + rules.slots
        self._holds = Holds(together=True)
        self._due_s: float | None = None  # when the next thing happens
        self._woken: asyncio.Future[None] | None = None
        self._replies: set[asyncio.Task[None]] = set()

    async def serve_queue(self) -> None:
        try:
            while True:
                self._due_s = self.batch.next_s()
                await self._wait(self._due_s)
                self._catch_up()
        finally:
            for reply in self._replies:
                reply.cancel()

    async def _wait(self, until_s: float | None) -> None:
        """Until then, or until something has come; long waits end early, see `models.clock`."""
        loop = asyncio.get_running_loop()
        self._woken = loop.create_future()
        alarm = None
        if until_s is not None:
            left_s = until_s - now_s()
            if left_s > SHORT_S and not getattr(loop, "punctual", False):
                until_s -= (1 - STEP) * left_s
            alarm = loop.call_at(until_s, _wake, self._woken)
        try:
            await self._woken
        finally:
            self._woken = None
            if alarm is not None:
                alarm.cancel()

    def _catch_up(self) -> None:
        """Make the steps that have begun by now, and answer who has ended."""
        at_s = now_s()
        if self._due_s is not None and at_s > self._due_s + STALL_S:
            self.batch.advance(self._due_s)
            self.batch.stall(at_s)
        self.batch.advance(at_s)
        if self.batch.has_news(at_s):
            admitted = self.batch.take_admitted()
            for job in admitted:
                job.content = None  # free the memory
                if job.header.kind is Kind.HEDGE:
                    self._spawn(self._stop_transfer(job))
            self._take_hedges(admitted)
            for job in self.batch.take_firsts(at_s):
                self._spawn(self._begin_answer(job))
            for served in self.batch.take_done(at_s):
                self._spawn(self._answer(served))
            if len(self._holds):
                self._release_due()
        self._rest()

    def _rest(self) -> None:
        """Idle is a worker that serves nothing and has sent all answers."""
        if self.batch.busy or self._replies:
            self._idle.clear()
        else:
            self._idle.set()

    async def _answer(self, served: Served[Job]) -> None:
        job = served.item
        stages = CloudStages(
            job.received_s,
            (served.admitted_s - job.received_s) * 1e3,
            (served.decoding_s - served.admitted_s) * 1e3,
            (served.end_s - served.decoding_s) * 1e3,
            job.header.mode,
            tokens=self._profiles.generation_of(job.header).output_tokens,
        )
        try:
            await job.reply(Kind.ANSWER, job.header, stages)
            self.counts["served"] += 1
        except OSError:
            self.counts["unanswered"] += 1

    def _spawn(self, reply: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(reply)
        self._replies.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, reply: asyncio.Task[None]) -> None:
        self._replies.discard(reply)
        self._rest()

    def _enqueue(self, job: Job) -> bool:
        if len(self.batch) >= self._room:
            return False
        work = self._profiles.generation_of(job.header)
        if problem := self.batch.rules.too_long(work):
            self._spawn(self._refuse(job, Unservable(problem)))
            return True
        self._catch_up()
        self.batch.add(job, work, job.header.deadline_s, now_s())
        self._idle.clear()
        self._look()
        return True

    def _look(self) -> None:
        """Have `serve_queue` look at the batch again, which has changed."""
        if self._woken is not None:
            _wake(self._woken)

    def _dequeue(self, job: Job) -> None:
        self.batch.remove(job)
        self._look()

    def _clear(self) -> int:
        return self.batch.clear()

    def forget(self) -> None:
        super().forget()
        self._holds = Holds(together=True)
        self._look()

    def _release_due(self) -> None:
        if len(self._holds):
            self._holds.recost(lambda job: self.batch.serve_ms(self._profiles.generation_of(job.header)))
        super()._release_due()

    def _busy_until_s(self, deadline_s: float) -> float:
        at_s = now_s()
        return at_s + self.batch.begin_in_ms(at_s) / 1e3 + HOLD_MARGIN_S


def _wake(woken: "asyncio.Future[None]") -> None:
    if not woken.done():
        woken.set_result(None)
