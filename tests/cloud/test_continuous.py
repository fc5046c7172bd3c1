"""A worker that batches by iteration, on a real socket: as any worker, but that requests share steps."""

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest

from cloud.batching import ContinuousBatching
from cloud.continuous import ContinuousWorker
from cloud.frames import CloudStages, Header, Kind, small_frame
from cloud.runtime import ProfileCloud
from cloud.worker import AnyWorker
from models.clock import now_s
from models.lengths import Lengths
from models.profiles import ModelProfile
from tests.support import workers
from tests.support.virtual import SocketLoop
from tests.support.workers import Client

EVENT_LOOP = SocketLoop  # virtual time: a busy machine makes nothing late
PROFILE = ModelProfile.model_validate(
    {
        "name": "test/sized",
        "kv_bytes": 1000,
        "tokens": 100,
        "answer_tokens": 10,
        "edge_prefill_ms": 1,
        "quality_basis": "none",
        "lengths": {
            "contexts": [1, 10_000],
            "edge": {"prefill_token_ms": 1, "step_ms": 1},
            "cloud": {"prefill_token_ms": 0.1, "step_ms": 5},
        },
        "modes": {
            "full": {"payload_bytes": 1000, "decode_ms": 100, "quality": 100},
            "prompt": {"payload_bytes": 50, "cloud_prefill_ms": 20, "decode_ms": 100, "quality": 100},
        },
    }
)


def serving(queue_limit: int = 8, **rules: object) -> AbstractAsyncContextManager[tuple[AnyWorker, tuple[str, int]]]:
    batching = ContinuousBatching.model_validate(rules)
    return workers.serving(ContinuousWorker(ProfileCloud([PROFILE]), queue_limit, batching), 1000, 8)


def request(
    number: int, mode: int = 0, lengths: Lengths | None = None, kind: Kind = Kind.REQUEST, **of: float
) -> bytes:
    return small_frame(Header(kind, number, 50, agent_id=1, mode=mode, lengths=lengths, **of), bytes(50))  # type: ignore[arg-type]


async def answers(client: Client, number: int) -> dict[int, CloudStages | str]:
    """So many answers or refusals, by request."""
    found: dict[int, CloudStages | str] = {}
    async with asyncio.timeout(60):
        while len(found) < number:
            header, body = await client.frame()
            if header.kind is Kind.ANSWER:
                found[header.request_id] = CloudStages.unpack(body)
            elif header.kind is Kind.REFUSAL:
                found[header.request_id] = body.decode()
    return found


async def test_requests_share_steps_and_stages_add_up() -> None:
    async with serving() as (worker, address):
        client = await Client.open(address)
        began_s = now_s()
        await client.send(request(1) + request(2, mode=1, lengths=Lengths(200, 4)) + request(3))
        found = await answers(client, 3)
        cache, prompt = found[1], found[2]
        assert isinstance(cache, CloudStages) and isinstance(prompt, CloudStages)
        assert cache.prefill_ms == 0 and cache.decode_ms == pytest.approx(100 + 20, abs=1), "200 prefilled positions"
        assert (prompt.prefill_ms, prompt.decode_ms) == (pytest.approx(30, abs=1), pytest.approx(4 * 10, abs=1))
        assert now_s() - began_s < 0.13
        assert worker.counts == {"served": 3}


async def test_the_first_token_is_sent_when_it_is_made() -> None:
    async with serving() as (_, address):
        client = await Client.open(address)
        began_s = now_s()
        await client.send(request(1, mode=1, lengths=Lengths(200, 8)))
        kinds = []
        for _ in range(3):
            header, body = await client.frame()
            kinds.append((header.kind, round((now_s() - began_s) * 1e3), CloudStages.unpack(body).tokens))
        assert kinds == [(Kind.RECEIPT, 0, 0), (Kind.FIRST_TOKEN, 25, 1), (Kind.ANSWER, 60, 8)]


async def test_queue_and_memory_are_bounded() -> None:
    async with serving(queue_limit=2, slots=1, kv_tokens=4096) as (worker, address):
        client = await Client.open(address)
        await client.send(request(9, lengths=Lengths(5000, 1)))
        for number in range(5):
            await client.send(request(number))
        found = await answers(client, 6)
        assert found[9] == "unservable: 5001 positions of context and answer are more than fit into KV memory: 4096"
        assert sorted(str(found[number]) for number in range(5)).count("queue_full") == 2
        assert worker.counts == {"served": 3, "refused_queue_full": 2, "refused_unservable": 1}


async def test_a_hedge_waits_for_its_cache_and_is_served_beside_others_in_time() -> None:
    async with serving() as (worker, address):
        client = await Client.open(address)
        await client.send(request(7))
        at_s = now_s()
        await client.send(request(1, mode=1, kind=Kind.HEDGE, deadline_s=at_s + 0.5))
        await client.send(request(2, mode=1, kind=Kind.HEDGE, deadline_s=at_s + 0.5))
        await asyncio.sleep(0.3)
        assert worker.counts == {"served": 1, "hedges_held": 2}
        await client.send(request(2))  # the cache of the second
        found = await answers(client, 3)
        first, second = found[1], found[2]
        assert isinstance(first, CloudStages) and isinstance(second, CloudStages)
        assert (first.mode, second.mode) == (1, 0)
        assert at_s + 0.45 < now_s() <= at_s + 0.5
        assert worker.counts == {"served": 3, "hedges_held": 2, "hedges_served": 1}


async def test_the_next_turn_finds_it_idle() -> None:
    async with serving(slots=1) as (worker, address):
        client = await Client.open(address)
        for number in range(3):
            await client.send(request(number))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(1):
            await worker.settle()
        assert worker.counts == {"forgotten": 2, "served": 1}
        await client.send(request(5))
        assert 5 in await answers(client, 2)


async def test_time_in_which_the_process_was_stopped_makes_no_steps() -> None:
    async with serving() as (worker, address):
        client = await Client.open(address)
        await client.send(request(1))
        await asyncio.sleep(0.03)
        asyncio.get_running_loop().pass_s(1.0)  # type: ignore[attr-defined]
        await client.send(request(2))
        found = await answers(client, 2)
        assert isinstance(found[2], CloudStages) and found[2].decode_ms == pytest.approx(100, abs=1)
        assert now_s() < 1.25
        assert worker.counts["served"] == 2
