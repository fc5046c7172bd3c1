"""A worker with real models at its real socket: what it answers, what it refuses, and that it serves on."""

import random
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch

from agents.model_edge import ModelEdge, ModelWork
from cloud.frames import CRC, CloudStages, Header, Kind, small_frame
from cloud.model_cloud import ModelCloud
from cloud.worker import Worker
from kvcache.modes import parse_mode
from models.profiles import load_profile
from models.settings import ModelSettings
from tests.support import workers
from tests.support.workers import Client

PROFILE = load_profile("family/tiny")
MODES = list(PROFILE.modes)
SETTINGS = ModelSettings(edge="family/tiny", cloud="family/base", dtype="float32", max_new_tokens=8, count=20)
HERE = Path()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def edge() -> ModelEdge:
    return ModelEdge(SETTINGS, PROFILE, MODES, "resident", HERE)


@pytest.fixture(scope="module")
def cloud() -> ModelCloud:
    return ModelCloud([PROFILE], {0: SETTINGS}, HERE, batch=4)


@asynccontextmanager
async def serving(cloud: ModelCloud) -> AsyncIterator[tuple[Worker, Client]]:
    async with workers.serving(Worker(cloud, queue_limit=64, batch=4), 2**30) as (worker, address):
        client = await Client.open(address)
        try:
            yield worker, client
        finally:
            client.hang_up()


async def body_of(work: ModelWork, name: str) -> bytes:
    mode = parse_mode(name)
    payload = await work.encode(mode, 0.0)
    body = b"".join([bytes(piece) async for piece in payload.pieces()])
    assert len(body) == payload.size == work.sizes[mode], "as many bytes as the allocator was told"
    return body


def frame(number: int, mode: str, body: bytes) -> bytes:
    return small_frame(Header(Kind.REQUEST, number, len(body), mode=PROFILE.code_of(parse_mode(mode))), body)


async def answer_of(client: Client) -> str:
    header, _ = await client.frame()
    assert header.kind is Kind.RECEIPT
    header, body = await client.frame()
    assert header.kind is Kind.ANSWER
    return CloudStages.unpack(body).text


async def test_a_whole_cache_is_answered_as_the_edge_itself_would(edge: ModelEdge, cloud: ModelCloud) -> None:
    async with serving(cloud) as (_, client):
        for number in range(5):
            work = await edge.prefill(number)
            await client.send(frame(number, "full", await body_of(work, "full")))
            assert await answer_of(client) == await work.decode(0.0) != ""


@pytest.mark.parametrize("mode", [str(mode) for mode in MODES if not mode.is_local])
async def test_every_mode_is_answered(edge: ModelEdge, cloud: ModelCloud, mode: str) -> None:
    async with serving(cloud) as (_, client):
        work = await edge.prefill(3)
        await client.send(frame(0, mode, await body_of(work, mode)))
        answer = await answer_of(client)
        quality = work.quality(answer)
        assert quality is not None and 0 <= quality <= 100


async def test_questions_that_wait_together_are_decoded_together(edge: ModelEdge, cloud: ModelCloud) -> None:
    async with serving(cloud) as (worker, client):
        bodies = [await body_of(await edge.prefill(number), "prompt") for number in range(6)]
        alone = []
        for number, body in enumerate(bodies):
            await client.send(frame(number, "prompt", body))
            alone.append(await answer_of(client))
        await client.send(b"".join(frame(number, "prompt", body) for number, body in enumerate(bodies)))
        answers: dict[int, CloudStages] = {}
        while len(answers) < len(bodies):
            header, body = await client.frame()
            if header.kind is Kind.ANSWER:
                answers[header.request_id] = CloudStages.unpack(body)
        assert [answers[number].text for number in range(6)] == alone
        assert len({stages.decode_ms for stages in answers.values()}) < 6, "some share one decode"
        assert worker.counts["served"] == 12


async def test_what_cannot_be_used_is_refused_with_its_reason_and_the_worker_serves_on(
    edge: ModelEdge, cloud: ModelCloud
) -> None:
    async with serving(cloud) as (worker, client):
        work = await edge.prefill(0)
        whole = await body_of(work, "int8")
        scout = await body_of(work, "scout")
        other = ModelEdge(
            SETTINGS.model_copy(update={"edge": "family/small"}), load_profile("family/small"), MODES, "resident", HERE
        )
        foreign = await body_of(await other.prefill(0), "int8")
        bad = {
            "truncated": ("int8", whole[:-7]),
            "trailing": ("int8", whole + b"\0"),
            "checksum": ("int8", whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:]),
            "bad_layer": ("int8", await body_of(work, "int4")),
            "foreign_model": ("int8", foreign),
            "magic": ("prompt", whole),
            "unservable": ("scout", scout[:8] + (9999).to_bytes(4, "little") + scout[12:]),
        }
        for number, (reason, (mode, body)) in enumerate(bad.items()):
            await client.send(frame(number, mode, body))
            header, text = await client.frame()
            if reason == "unservable":  # the frame was fine; what it asks about isn't here
                assert header.kind is Kind.RECEIPT
                header, text = await client.frame()
            assert (header.kind, header.request_id) == (Kind.REFUSAL, number), reason
            assert text.decode().startswith(reason), text
            assert worker.counts[f"refused_{reason}"] == 1
        await client.send(frame(99, "int8", whole))
        assert await answer_of(client) != ""


@pytest.mark.timeout(600)  # each answer is decoded alone: half a minute, and more where others compute
async def test_ten_thousand_mutated_frames(edge: ModelEdge, cloud: ModelCloud) -> None:
    """Bodies are damaged and their frames' checksums made right again, so that everything reaches the decoders."""
    rng = random.Random(1)
    shortest = min(range(20), key=lambda number: len(edge.examples[number].context))
    async with serving(cloud) as (worker, client):
        work = await edge.prefill(shortest)
        modes = ("int4", "scout", "prompt")
        bodies = {mode: await body_of(work, mode) for mode in modes}
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ends = {Kind.REFUSAL: 0, Kind.ANSWER: 0}
        for number in range(10_000):
            mode = rng.choice(modes)
            body = bytearray(bodies[mode])
            kind = rng.randrange(4)
            if kind == 0:
                del body[rng.randrange(len(body)) :]
            elif kind == 1:
                body += rng.randbytes(rng.randrange(1, 100))
            else:
                # Headers are at the beginning: half of the damage goes there.
                for _ in range(rng.randrange(1, 8)):
                    body[rng.randrange(min(len(body), 80) if kind == 2 else len(body))] = rng.randrange(256)
            await client.send(frame(number, mode, bytes(body)))
            while True:
                header, _ = await client.frame()
                if header.kind is not Kind.RECEIPT:
                    break
            assert header.request_id == number
            ends[header.kind] += 1
        assert sum(ends.values()) == 10_000 and ends[Kind.REFUSAL] > 5_000
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 200 * 1024, "no length is believed"
        await client.send(frame(10_000, "int4", bodies["int4"]))
        assert await answer_of(client) == await work.decode(0.0)
        assert worker.counts["served"] == ends[Kind.ANSWER] + 1


def test_frames_end_with_a_checksum() -> None:
    """What the tests above rely on: `small_frame` makes damaged bodies right again."""
    assert frame(0, "int8", b"abc")[-CRC.size :] != frame(0, "int8", b"abd")[-CRC.size :]
