"""What goes ahead of a cache answers for it when the cache is late, and only then; over real sockets.

Time is virtual: a hedge costs 50 ms, deadlines are half a second away.
"""

import asyncio
import math
import os
import random
import zlib
from contextlib import AbstractAsyncContextManager
from itertools import accumulate, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloud.frames import (
    CRC,
    LENGTH,
    MAX_HEDGE_BYTES,
    CloudStages,
    Disconnected,
    Header,
    Kind,
    small_frame,
)
from cloud.runtime import ProfileCloud
from cloud.worker import HOLD_MARGIN_S, Job, Worker
from models.clock import now_s, sleep_until
from tests.support import workers
from tests.support.virtual import SocketLoop, virtually
from tests.support.workers import CACHE_BYTES
from tests.support.workers import HEDGED_PROFILE as PROFILE

EVENT_LOOP = SocketLoop  # virtual time: a busy machine makes nothing late
Serving = tuple[Worker, tuple[str, int]]
FULL, PROMPT = 0, 1
HEDGE_S = 0.050


def serving(queue_limit: int = 8) -> AbstractAsyncContextManager[Serving]:
    return workers.serving(Worker(ProfileCloud([PROFILE]), queue_limit), CACHE_BYTES)


class Client(workers.Client):
    """An agent's connection, and what it expects there."""

    async def expect(self, kind: Kind, number: int, mode: int) -> CloudStages:
        header, body = await self.frame()
        assert header.kind is not Kind.REFUSAL, body
        stages = CloudStages.unpack(body)
        assert (header.kind, header.request_id, stages.mode) == (kind, number, mode)
        return stages

    async def nothing_more(self, for_s: float = 0.15) -> None:
        """Nothing comes for a while."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(for_s):
                raise AssertionError(await self.reader.header())


def hedge(number: int, deadline_s: float, mode: int = PROMPT, size: int = 50) -> bytes:
    header = Header(Kind.HEDGE, number, size, agent_id=1, mode=mode, deadline_s=deadline_s)
    return small_frame(header, random.Random(number).randbytes(size))  # the same each time: tests are named by it


def opened(number: int, size: int = CACHE_BYTES) -> bytes:
    """The header of a request in chunks."""
    return Header(Kind.REQUEST, number, size, agent_id=1, mode=FULL, chunked=True).pack()


def chunk(data: bytes) -> bytes:
    return LENGTH.pack(len(data)) + data


def withdrawn(sent: bytes) -> bytes:
    """The end of a request of which no more than `sent` comes."""
    return LENGTH.pack(0) + CRC.pack(zlib.crc32(sent))


def whole(number: int, size: int = 1000) -> bytes:
    """A request in two chunks."""
    data = os.urandom(size)
    return opened(number, size) + chunk(data[:100]) + chunk(data[100:]) + CRC.pack(zlib.crc32(data))


async def serves_on(address: tuple[str, int], client: Client | None = None) -> None:
    client = client or await Client.open(address)
    await client.send(whole(99))
    await client.expect(Kind.RECEIPT, 99, FULL)
    await client.expect(Kind.ANSWER, 99, FULL)


async def test_a_cache_in_time_makes_its_hedge_forgotten() -> None:
    async with serving() as (worker, address):
        client = await Client.open(address)
        deadline_s = now_s() + 0.3
        await client.send(hedge(1, deadline_s), whole(1))
        await client.expect(Kind.RECEIPT, 1, FULL)
        stages = await client.expect(Kind.ANSWER, 1, FULL)
        assert stages.prefill_ms == 0 and now_s() < deadline_s
        await asyncio.sleep(deadline_s - now_s())
        await client.nothing_more()
        assert worker.counts == {"served": 1, "hedges_held": 1}


async def test_a_late_cache_is_answered_from_its_hedge_and_its_rest_withdrawn() -> None:
    async with serving() as (worker, address):
        client = await Client.open(address)
        sent_s = now_s()
        deadline_s, part = sent_s + 0.5, os.urandom(1000)
        await client.send(hedge(1, deadline_s), opened(1), chunk(part))
        receipt = await client.expect(Kind.RECEIPT, 1, PROMPT)
        last_safe_s = deadline_s - HEDGE_S - HOLD_MARGIN_S
        assert now_s() == pytest.approx(last_safe_s, abs=1e-3), "at the last safe moment"
        assert receipt.received_s == pytest.approx(sent_s, abs=1e-3), "when the hedge came"
        await client.send(withdrawn(part))
        stages = await client.expect(Kind.ANSWER, 1, PROMPT)
        assert now_s() < deadline_s and stages.prefill_ms == pytest.approx(20, abs=0.1)
        await serves_on(address, client)
        assert worker.counts == {"served": 2, "hedges_held": 1, "hedges_served": 1, "withdrawn": 1}


async def test_a_cache_that_comes_whole_after_all_is_not_answered_again() -> None:
    async with serving() as (worker, address):
        client = await Client.open(address)
        data = os.urandom(1000)
        await client.send(hedge(1, now_s()), opened(1, 1000), chunk(data[:500]))
        await client.expect(Kind.RECEIPT, 1, PROMPT)
        await client.send(chunk(data[500:]), CRC.pack(zlib.crc32(data)))
        await client.expect(Kind.ANSWER, 1, PROMPT)
        await client.nothing_more()
        await serves_on(address, client)
        assert worker.counts["served"] == 2


async def test_a_cache_that_comes_while_its_hedge_waits_in_the_queue_is_taken_instead() -> None:
    async with serving() as (worker, address):
        other, client = await Client.open(address), await Client.open(address)
        for number in range(5):
            await other.send(whole(number))
            await other.expect(Kind.RECEIPT, number, FULL)
        await client.send(hedge(1, now_s()))
        await asyncio.sleep(0.03)  # it can't wait any longer, and is fifth in the queue
        await client.send(whole(1))
        await client.expect(Kind.RECEIPT, 1, FULL)
        stages = await client.expect(Kind.ANSWER, 1, FULL)
        assert stages.prefill_ms == 0, "a cache needs none"
        await client.nothing_more()
        assert worker.counts == {"served": 6, "hedges_held": 1}


async def test_hedges_with_one_deadline_are_all_answered_in_time_one_after_the_other() -> None:
    async with serving() as (worker, address):
        clients = [await Client.open(address) for _ in range(4)]
        deadline_s = now_s() + 0.6
        for client in clients:
            await client.send(hedge(1, deadline_s), opened(1))
        answered_s = []

        async def receive(client: Client) -> None:
            await client.expect(Kind.RECEIPT, 1, PROMPT)
            stages = await client.expect(Kind.ANSWER, 1, PROMPT)
            assert stages.queue_ms >= 600 - 4 * 50 - 1e3 * HOLD_MARGIN_S - 1, "held as long as could be"
            answered_s.append(now_s())

        await asyncio.gather(*map(receive, clients))
        assert max(answered_s) < deadline_s
        gaps = [b - a for a, b in pairwise(answered_s)]
        assert gaps == pytest.approx([HEDGE_S] * 3, abs=1e-3), "one at a time"
        assert worker.counts == {"served": 4, "hedges_held": 4, "hedges_served": 4}


async def test_work_without_haste_makes_way_for_a_hedge_at_its_last_safe_moment() -> None:
    async with serving(queue_limit=20) as (worker, address):
        client, other = await Client.open(address), await Client.open(address)
        deadline_s = now_s() + 0.4
        await client.send(hedge(1, deadline_s), opened(1))
        await asyncio.sleep(0.05)
        for number in range(14):  # 420 ms of work that has no deadline
            await other.send(whole(number))
            await other.expect(Kind.RECEIPT, number, FULL)
        await client.expect(Kind.RECEIPT, 1, PROMPT)
        assert 5 <= worker.counts["served"] <= 12, "it was held meanwhile, and did not wait for all of them"
        await client.expect(Kind.ANSWER, 1, PROMPT)
        assert now_s() < deadline_s


async def test_hedges_beyond_the_room_are_dropped_and_counted() -> None:
    async with serving(queue_limit=2) as (worker, address):
        clients = [await Client.open(address) for _ in range(3)]
        for client in clients:
            await client.send(hedge(1, now_s() + 0.25))
            await asyncio.sleep(0.02)
        for client in clients[:2]:
            await client.expect(Kind.RECEIPT, 1, PROMPT)
        assert worker.counts["hedges_dropped"] == 1 and worker.counts["hedges_held"] == 2
        await clients[2].nothing_more()
        await serves_on(address, clients[2])


async def test_a_full_queue_has_no_room_for_a_hedge_that_is_due() -> None:
    async with serving(queue_limit=1) as (worker, address):
        other, client = await Client.open(address), await Client.open(address)
        for number in range(2):
            await other.send(whole(number))
            await other.expect(Kind.RECEIPT, number, FULL)
        await client.send(hedge(1, now_s()))
        await other.expect(Kind.ANSWER, 0, FULL)
        await other.expect(Kind.ANSWER, 1, FULL)
        await client.nothing_more()
        assert worker.counts == {"served": 2, "hedges_held": 1, "hedges_dropped": 1}
        await client.send(whole(1))
        await client.expect(Kind.RECEIPT, 1, FULL)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (hedge(1, math.nan), "deadline"),
        (hedge(1, math.inf), "deadline"),
        (hedge(1, -math.inf), "deadline"),
        (hedge(1, 1.0, size=MAX_HEDGE_BYTES + 1), "oversized"),
        (hedge(1, 1.0, mode=9), "unknown_model"),
        (hedge(1, 1.0)[:-1] + b"\x00", "body_checksum"),
        (hedge(1, 1e300) + opened(1) + LENGTH.pack(CACHE_BYTES + 1), "chunk"),
        (hedge(1, 1e300) + opened(1) + LENGTH.pack(2**32 - 1), "chunk"),
        (hedge(1, 1e300) + opened(1, 10) + chunk(b"a" * 9) + chunk(b"aa"), "chunk"),
        (hedge(1, 1e300) + opened(1, 10) + chunk(b"a" * 9) + withdrawn(b"a" * 8), "body_checksum"),
    ],
)
async def test_refused_hedges_are_counted_and_the_worker_serves_on(data: bytes, reason: str) -> None:
    async with serving() as (worker, address):
        client = await Client.open(address)
        await client.send(data)
        header, body = await client.frame()
        assert (header.kind, body) == (Kind.REFUSAL, reason.encode())
        async with asyncio.timeout(5):
            with pytest.raises((Disconnected, ConnectionError)):
                await client.reader.header()
        assert worker.counts[f"refused_{reason}"] == 1
        await serves_on(address)
        assert worker.counts["served"] == 1 and worker.counts["hedges_served"] == 0


@pytest.mark.parametrize("reset", [False, True])
async def test_a_lost_connection_takes_its_hedges_with_it(reset: bool) -> None:
    async with serving() as (worker, address):
        client = await Client.open(address)
        deadline_s = now_s() + 0.3
        await client.send(hedge(1, deadline_s), hedge(2, deadline_s), opened(1))
        await asyncio.sleep(0.05)
        assert worker.counts["hedges_held"] == 2
        client.hang_up(reset)
        await asyncio.sleep(0.4)
        assert worker.counts == {"hedges_held": 2, "refused_truncated": 1}
        await serves_on(address)


async def test_a_lost_connection_s_hedge_in_the_queue_is_passed_over() -> None:
    async with serving() as (worker, address):
        other, client = await Client.open(address), await Client.open(address)
        for number in range(5):
            await other.send(whole(number))
            await other.expect(Kind.RECEIPT, number, FULL)
        await client.send(hedge(1, now_s()))
        await asyncio.sleep(0.03)
        client.sock.close()
        await serves_on(address)
        assert worker.counts == {"served": 6, "hedges_held": 1}


async def test_the_end_of_a_turn_forgets_hedges() -> None:
    async with serving() as (worker, address):
        client = await Client.open(address)
        await client.send(hedge(1, now_s() + 0.2), opened(1))
        await asyncio.sleep(0.05)
        await worker.settle()
        await client.nothing_more(0.3)
        await client.send(withdrawn(b""))
        await serves_on(address, client)
        assert worker.counts == {"served": 1, "hedges_held": 1, "withdrawn": 1}


class Replies:
    """A worker on virtual time, and when it answered what from which mode."""

    def __init__(self, queue_limit: int = 50) -> None:
        self.worker = Worker(ProfileCloud([PROFILE]), queue_limit)
        self.serving = asyncio.create_task(self.worker.serve_queue())
        self.receipts: list[tuple[object, int, float]] = []
        self.answers: dict[object, tuple[int, float]] = {}

    def _job(self, key: object, kind: Kind, mode: int, deadline_s: float = math.inf) -> Job:
        async def reply(kind: Kind, header: Header, stages: CloudStages) -> None:
            if kind is Kind.RECEIPT:
                self.receipts.append((key, stages.mode, now_s()))
            else:
                assert key not in self.answers, "one answer for each"
                self.answers[key] = stages.mode, now_s()

        return Job(key, Header(kind, 0, 0, mode=mode, deadline_s=deadline_s), now_s(), reply)

    def hold(self, key: object, deadline_s: float) -> None:
        self.worker.hold(self._job(key, Kind.HEDGE, PROMPT, deadline_s))

    async def submit(self, key: object, mode: int = FULL, deadline_s: float = math.inf) -> None:
        await self.worker.submit(self._job(key, Kind.REQUEST, mode, deadline_s))


@given(st.lists(st.tuples(st.integers(30, 400), st.sampled_from([FULL, PROMPT])), max_size=8))
@example([(79, FULL), (90, PROMPT)])
def test_requests_are_served_by_deadline_and_so_in_time_if_they_can_be(asked: list[tuple[int, int]]) -> None:
    ends_ms = accumulate(50 if mode == PROMPT else 30 for _, mode in sorted(asked))
    if any(end_ms > deadline_ms for end_ms, (deadline_ms, _) in zip(ends_ms, sorted(asked), strict=True)):
        return

    async def main() -> None:
        r = Replies()
        for number, (deadline_ms, mode) in enumerate(asked):
            await r.submit(number, mode, deadline_ms / 1e3)
        await asyncio.sleep(1)
        late = [number for number, (_, at_s) in r.answers.items() if at_s > asked[number][0] / 1e3 + 1e-9]
        assert len(r.answers) == len(asked) and late == []

    virtually(main)


def test_requests_that_are_lost_are_served_behind_all_others_but_are_served() -> None:
    async def main() -> None:
        r = Replies()
        await r.submit("first")
        await asyncio.sleep(0.001)
        await r.submit("lost", deadline_s=0.020)
        await r.submit("hasty", deadline_s=0.070)
        await r.submit("idle")
        await asyncio.sleep(1)
        assert sorted(r.answers, key=lambda key: r.answers[key][1]) == ["first", "hasty", "idle", "lost"]

    virtually(main)


def test_a_hedge_waits_while_the_queue_is_long_if_it_is_more_urgent_than_what_is_queued() -> None:
    async def main() -> None:
        r = Replies()
        for number in range(20):
            await r.submit(number)
        r.hold("hedge", deadline_s=0.5)
        await sleep_until(0.3)
        await r.submit("hedge", deadline_s=0.5)
        await asyncio.sleep(1)
        mode, at_s = r.answers["hedge"]
        assert mode == FULL and at_s <= 0.5

    virtually(main)


def test_a_lost_request_isn_t_begun_just_before_a_hedge_s_last_safe_moment() -> None:
    async def main() -> None:
        r = Replies()
        r.hold("hedge", deadline_s=0.130)  # to be begun at 80 ms
        await r.submit("first")
        await asyncio.sleep(0.001)
        await r.submit("lost", deadline_s=0.020)
        await r.submit("second")  # until 60 ms
        await asyncio.sleep(1)
        assert r.answers["hedge"][1] <= 0.130

    virtually(main)


def test_a_hedge_doesn_t_wait_behind_work_that_comes_before_its_last_safe_moment() -> None:
    async def main() -> None:
        r = Replies()
        r.hold("hedge", deadline_s=1.0)
        await sleep_until(0.935)  # 940 would be the last moment
        await r.submit("cache")
        await asyncio.sleep(1)
        assert r.answers == {"hedge": (PROMPT, pytest.approx(0.985)), "cache": (FULL, pytest.approx(1.015))}

    virtually(main)


def test_work_that_is_done_before_a_last_safe_moment_leaves_the_hedge_waiting() -> None:
    async def main() -> None:
        r = Replies()
        r.hold("hedge", deadline_s=1.0)
        await sleep_until(0.9)
        await r.submit("cache")
        await sleep_until(0.935)
        await r.submit("hedge")
        await asyncio.sleep(1)
        assert r.answers == {"cache": (FULL, pytest.approx(0.93)), "hedge": (FULL, pytest.approx(0.965))}

    virtually(main)


deadlines_ms = st.lists(st.integers(0, 600), min_size=1, max_size=8)
caches_ms = st.lists(st.integers(0, 700), max_size=8)


@given(deadlines_ms, caches_ms)
@example([41, 72, 72], [71, 71])
def test_whatever_work_comes_hedges_are_in_time_if_they_can_be(deadlines: list[int], caches: list[int]) -> None:
    """All are held from the start; then other work comes, before and behind which they must be put."""

    async def main() -> None:
        r = Replies()
        # Not even the first to be begun is too late, each with 50 ms, their margin, and 30 ms that may just have begun.
        spaced = [90 + 50 * number + late for number, late in enumerate(sorted(deadlines))]
        for number, deadline_ms in enumerate(spaced):
            r.hold(number, deadline_ms / 1e3)
        for number, at_ms in enumerate(sorted(caches)):
            await sleep_until(at_ms / 1e3)
            await r.submit(f"cache {number}")
        await asyncio.sleep(5)
        assert len(r.answers) == len(deadlines) + len(caches)
        for number, deadline_ms in enumerate(spaced):
            mode, at_s = r.answers[number]
            assert mode == PROMPT and at_s <= deadline_ms / 1e3
        assert not r.worker._served_from_hedge - set(range(len(spaced))) and not r.worker._queued_hedges
        assert not len(r.worker.schedule)

    virtually(main)
