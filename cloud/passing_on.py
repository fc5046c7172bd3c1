"""A cloud worker that passes its requests on to an OpenAI-compatible server."""

import asyncio
import random
from bisect import insort
from collections.abc import Coroutine
from itertools import count
from typing import Any

from cloud.frames import CloudStages, Header, Kind
from cloud.openai import Generated, OpenAIServer, ServerError
from cloud.runtime import ProfileCloud, Unservable
from cloud.worker import HOLD_MARGIN_S, AnyWorker, Job
from models.clock import now_s

# Each is one token of nearly every tokenizer, with the blank before it.
WORDS = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company",
    "system", "program", "question", "work", "number", "night", "point", "home", "water", "room", "mother", "area",
    "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business", "issue",
    "side", "kind", "head", "house", "service", "friend", "father",
]  # fmt: skip


class ServerWorker(AnyWorker):
    """Passes requests on, the earliest deadline first, and so many at a time as the backend's `at_a_time` says.

    A profile's request has a length and no words: the server gets random ones, as many as the context has tokens.
    What the server takes until its first token is the prefill, the rest is decoding.

    Args:
        queue_limit: as for `AnyWorker`, beside the requests that have been passed on.
        server: of this worker alone; opened and closed by `serve_queue`.
        seed: of the prompts' words.
    """

    def __init__(self, runtime: ProfileCloud, queue_limit: int, server: OpenAIServer, seed: int = 0) -> None:
        super().__init__(runtime, queue_limit)
        self._profiles = runtime
        self._server = server
        self._words = random.Random(seed)
        self._queue: list[tuple[float, int, Job]] = []
        self._came = count()
        self._filled = asyncio.Event()
        self._passed_on: set[asyncio.Task[None]] = set()

    def check(self) -> None:
        self._server.check()

    async def serve_queue(self) -> None:
        async with self._server as server:
            try:
                while True:
                    await self._filled.wait()
                    self._filled.clear()
                    while self._queue and len(self._passed_on) < server.backend.at_a_time:
                        _, _, job = self._queue.pop(0)
                        self._take_hedges([job])
                        self._spawn(self._serve(job))
            finally:
                for task in self._passed_on:
                    task.cancel()

    def _spawn(self, serving: Coroutine[Any, Any, None]) -> None:
        self._idle.clear()
        task = asyncio.create_task(serving)
        self._passed_on.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._passed_on.discard(task)
        self._filled.set()
        if not self._passed_on:
            self._idle.set()

    async def _serve(self, job: Job) -> None:
        if job.header.kind is Kind.HEDGE:
            await self._stop_transfer(job)
        work = self._profiles.generation_of(job.header)
        began_s = now_s()
        first: list[asyncio.Task[None]] = []
        try:
            found = await self._server.generate(
                self._prompt(work.kept),
                work.output_tokens,
                lambda: first.append(asyncio.create_task(self._begin_answer(job))),
            )
        except ServerError as error:
            await self._refuse(job, Unservable(str(error)))
            return
        finally:
            await asyncio.gather(*first)  # nothing may overtake the first token
        try:
            await job.reply(Kind.ANSWER, job.header, _stages(job, began_s, found))
            self.counts["served"] += 1
        except OSError:
            self.counts["unanswered"] += 1

    def _prompt(self, tokens: int) -> str:
        return " ".join(self._words.choices(WORDS, k=tokens))

    def _enqueue(self, job: Job) -> bool:
        if len(self._queue) >= self._queue_limit:
            return False
        insort(self._queue, (job.header.deadline_s, next(self._came), job))
        self._filled.set()
        return True

    def _dequeue(self, job: Job) -> None:
        self._queue = [entry for entry in self._queue if entry[2] is not job]

    def _clear(self) -> int:
        forgotten = len(self._queue)
        self._queue.clear()
        return forgotten

    def _busy_until_s(self, deadline_s: float) -> float:
        return now_s() + HOLD_MARGIN_S


def _stages(job: Job, began_s: float, found: Generated) -> CloudStages:
    header: Header = job.header
    return CloudStages(
        job.received_s,
        (began_s - job.received_s) * 1e3,
        (found.first_token_s - began_s) * 1e3,
        (found.end_s - found.first_token_s) * 1e3,
        header.mode,
        tokens=found.tokens,
    )
