"""A worker on a real socket: serves, queues, refuses what is not a request, and always serves on."""

import asyncio
import random
from contextlib import AbstractAsyncContextManager

import pytest

from cloud.frames import CloudStages, Header, Kind, small_frame
from cloud.runtime import ProfileCloud
from cloud.worker import Worker
from models.profiles import ModelProfile
from tests.support import workers
from tests.support.virtual import SocketLoop
from tests.support.workers import Client

EVENT_LOOP = SocketLoop  # virtual time: a busy machine makes nothing late
Serving = tuple[Worker, tuple[str, int]]
PROFILE = ModelProfile.model_validate(
    {
        "name": "test/fast",
        "kv_bytes": 1000,
        "edge_prefill_ms": 1,
        "quality_basis": "none",
        "modes": {
            "full": {"payload_bytes": 1000, "decode_ms": 30, "quality": 100},
            "prompt": {"payload_bytes": 50, "cloud_prefill_ms": 20, "decode_ms": 30, "quality": 100},
        },
    }
)


def serving(queue_limit: int = 8, max_connections: int = 8) -> AbstractAsyncContextManager[Serving]:
    return workers.serving(Worker(ProfileCloud([PROFILE]), queue_limit), 1000, max_connections)


def request(number: int, mode: int = 0, model: int = 0, size: int = 1000) -> bytes:
    body = random.Random(number).randbytes(size)  # the same each time: tests are named by it
    return small_frame(Header(Kind.REQUEST, number, size, agent_id=1, model=model, mode=mode), body)


async def test_serves_with_receipt_answer_and_its_times() -> None:
    async with serving() as (worker, address):
        client = await Client.open(address)
        await client.send(request(1, mode=1))
        receipt, body = await client.frame()
        assert (receipt.kind, receipt.request_id) == (Kind.RECEIPT, 1)
        received_s = CloudStages.unpack(body).received_s
        answer, body = await client.frame()
        stages = CloudStages.unpack(body)
        assert (answer.kind, answer.request_id) == (Kind.ANSWER, 1)
        assert stages.received_s == received_s
        assert (stages.prefill_ms, stages.decode_ms) == pytest.approx((20, 30), abs=0.1)
        assert worker.counts == {"served": 1}


async def test_decoding_occupies_the_worker() -> None:
    async with serving() as (_, address):
        clients = [await Client.open(address) for _ in range(3)]
        for number, client in enumerate(clients):
            await client.send(request(number))
        queued = []
        for client in clients:
            await client.frame()
            queued.append(CloudStages.unpack((await client.frame())[1]).queue_ms)
        assert sorted(queued) == pytest.approx([0, 30, 60], abs=0.1), "one after the other, 30 ms each"


async def test_a_full_queue_refuses_and_counts() -> None:
    async with serving(queue_limit=1) as (worker, address):
        client = await Client.open(address)
        for number in range(4):
            await client.send(request(number))
        kinds = {}
        async with asyncio.timeout(5):
            while len(kinds) < 4:
                header, body = await client.frame()
                if header.kind is not Kind.RECEIPT:
                    kinds[header.request_id] = (header.kind, body if header.kind is Kind.REFUSAL else b"")
        refused = [number for number, kind in kinds.items() if kind == (Kind.REFUSAL, b"queue_full")]
        assert refused and kinds[0][0] is Kind.ANSWER
        assert worker.counts["refused_queue_full"] == len(refused)
        assert worker.counts["served"] == 4 - len(refused)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: a-cloud-worker.of-some.example\r\n\r\n", "magic"),
        (small_frame(Header(Kind.REQUEST, 1, 5), b"hello")[:-1] + b"\x00", "body_checksum"),
        (Header(Kind.REQUEST, 1, 1001).pack(), "oversized"),
        (Header(Kind.REQUEST, 1, 2**63).pack(), "oversized"),
        (small_frame(Header(Kind.ANSWER, 1, 0)), "kind"),
        (request(1, mode=7), "unknown_model"),
        (request(1, model=7), "unknown_model"),
    ],
)
async def test_refused_frames_are_counted_and_the_worker_serves_on(data: bytes, reason: str) -> None:
    async with serving() as (worker, address):
        client = await Client.open(address)
        await client.send(data)
        header, body = await client.frame()
        assert (header.kind, body) == (Kind.REFUSAL, reason.encode())
        assert await client.closed()
        assert worker.counts == {f"refused_{reason}": 1}
        await serves_on(worker, address)


@pytest.mark.parametrize("reset", [False, True])
async def test_truncated_frames_are_counted(reset: bool) -> None:
    async with serving() as (worker, address):
        client = await Client.open(address)
        await client.send(request(1)[:500])
        await asyncio.sleep(0.05)
        client.hang_up(reset)
        async with asyncio.timeout(5):
            while not worker.counts["refused_truncated"]:
                await asyncio.sleep(0.01)
        await serves_on(worker, address)


async def test_mutated_frames_never_crash_it() -> None:
    rng = random.Random(5)
    async with serving() as (worker, address):
        for number in range(300):
            frame = bytearray(request(number))
            for _ in range(rng.randint(1, 6)):
                frame[rng.randrange(len(frame))] = rng.randrange(256)
            client = await Client.open(address)
            await client.send(bytes(frame[: rng.randrange(1, len(frame) + 1)]))
            client.sock.close()
        await serves_on(worker, address)
        async with asyncio.timeout(5):
            while sum(worker.counts.values()) < 301:
                await asyncio.sleep(0.01)


async def test_too_many_connections_are_closed_and_counted() -> None:
    async with serving(max_connections=2) as (worker, address):
        kept = [await Client.open(address) for _ in range(2)]
        assert await (await Client.open(address)).closed()
        assert worker.counts == {"refused_connections": 1}
        await kept[0].send(request(1))
        assert (await kept[0].frame())[0].kind is Kind.RECEIPT


async def test_an_agent_that_has_gone_doesn_t_stop_the_queue() -> None:
    async with serving() as (worker, address):
        gone = await Client.open(address)
        await gone.send(request(1))
        await gone.frame()
        gone.hang_up(reset=True)
        await serves_on(worker, address)


async def serves_on(worker: Worker, address: tuple[str, int]) -> None:
    client = await Client.open(address)
    await client.send(request(99))
    assert (await client.frame())[0].kind is Kind.RECEIPT
    assert (await client.frame())[0].kind is Kind.ANSWER
    client.sock.close()
