"""What requests carry up: whole, they come back as they were; anything else is refused in words, never by accident."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache.cache import Geometry, KVCache
from kvcache.errors import WireError
from kvcache.wire import Limits
from models.hf.bodies import (
    CacheBody,
    CachePayload,
    QuestionBody,
    QuestionPayload,
    cache_bytes,
    write_cache,
    write_question,
)

GEOMETRY = Geometry(2, 2, 8, torch.float32)
FINGERPRINT = bytes(range(16))
contexts = st.one_of(st.integers(0, 2**32 - 1), st.text(max_size=200))
chosen = st.lists(st.booleans(), min_size=1, max_size=200)


def random_cache(kept: int, seed: int = 0) -> KVCache:
    source = torch.Generator().manual_seed(seed)
    shape = GEOMETRY.shape(kept)
    layers = [(torch.randn(shape, generator=source), torch.randn(shape, generator=source)) for _ in range(2)]
    return KVCache.whole(tuple(layers))


def cache_body(size: int, plan: str | None = "int8", limits: Limits | None = None) -> CacheBody:
    return CacheBody({FINGERPRINT: GEOMETRY}, limits or Limits(), plan, size, "cpu")


def fed(body: CacheBody | QuestionBody, raw: bytes, step: int) -> CachePayload | QuestionPayload:
    for begin in range(0, len(raw), step):
        body.feed(memoryview(raw)[begin : begin + step])
    return body.finish()


@given(context=contexts, question=st.text(max_size=100), keep=st.none() | chosen, step=st.integers(1, 50))
def test_questions_come_back_however_they_are_cut(
    context: str | int, question: str, keep: list[bool] | None, step: int
) -> None:
    positions = None if keep is None else torch.tensor([i for i, kept in enumerate(keep) if kept], dtype=torch.int64)
    asked = QuestionPayload(context, question, positions, 0 if keep is None else len(keep))
    found = fed(QuestionBody(1000), write_question(asked), step)
    assert isinstance(found, QuestionPayload)
    assert (found.context, found.question, found.context_tokens) == (context, question, asked.context_tokens)
    assert (found.positions is None) == (positions is None)
    assert positions is None or torch.equal(found.positions, positions)


@settings(deadline=None)
@given(kept=st.integers(1, 20), token=st.integers(0, 2**32 - 1), step=st.integers(1, 400))
def test_caches_come_back_however_they_are_cut(kept: int, token: int, step: int) -> None:
    cache = random_cache(kept)
    raw = b"".join(write_cache(CachePayload(cache, token), "bf16", FINGERPRINT))
    assert len(raw) == cache_bytes(GEOMETRY, "bf16", cache.positions, kept), "the size that the frame will claim"
    found = fed(cache_body(len(raw), "bf16"), raw, step)
    assert isinstance(found, CachePayload) and found.last_token == token
    torch.testing.assert_close(found.cache.layers[1][0], cache.layers[1][0].bfloat16().float())


def test_a_sender_prunes_as_a_pruned_cache_is_sent() -> None:
    cache, keep = KVCache.whole(random_cache(30).layers), torch.arange(3, 30, 4)
    pruned = b"".join(write_cache(CachePayload(cache.keep(keep), 7), "int8", FINGERPRINT))
    assert b"".join(write_cache(CachePayload(cache, 7), "int8", FINGERPRINT, keep)) == pruned


@given(raw=st.binary(max_size=300), step=st.integers(1, 100))
def test_garbage_is_no_question(raw: bytes, step: int) -> None:
    with pytest.raises(WireError):
        fed(QuestionBody(1000), raw, step)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_question_is_refused_or_read_as_it_stands(data: st.DataObject) -> None:
    raw = bytearray(write_question(QuestionPayload(7, "where?", torch.tensor([1, 5]), 9)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = fed(QuestionBody(1000), bytes(raw), 17)
    except WireError:
        return
    assert isinstance(found, QuestionPayload)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda raw: raw[:-1], "truncated"),
        (lambda raw: raw[:3], "truncated"),
        (lambda raw: raw + b"\0", "trailing"),
        (lambda raw: raw[:4] + b"XXXX" + raw[8:], "magic"),
        (lambda raw: raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:], "checksum"),
    ],
    ids=["cut", "in its token", "more", "not a cache", "damaged"],
)
def test_what_is_no_cache_is_refused(change: object, code: str) -> None:
    whole = b"".join(write_cache(CachePayload(random_cache(5), 3), "int8", FINGERPRINT))
    raw = change(whole)  # type: ignore[operator]
    with pytest.raises(WireError) as refused:
        fed(cache_body(len(raw)), raw, 64)
    assert refused.value.code == code


def test_another_models_cache_and_another_modes_cache_are_refused() -> None:
    raw = b"".join(write_cache(CachePayload(random_cache(5), 3), "int4", FINGERPRINT))
    with pytest.raises(WireError, match="where the mode's cache has") as refused:
        fed(cache_body(len(raw), "int8"), raw, 64)
    assert refused.value.code == "bad_layer"
    foreign = b"".join(write_cache(CachePayload(random_cache(5), 3), "int8", bytes(16)))
    with pytest.raises(WireError, match="which isn't served here"):
        fed(cache_body(len(foreign)), foreign, 64)


def test_a_cache_beyond_the_limit_is_refused_by_its_header() -> None:
    raw = b"".join(write_cache(CachePayload(random_cache(50), 3), "int8", FINGERPRINT))
    body = cache_body(len(raw), limits=Limits(max_positions=49))
    with pytest.raises(WireError) as refused:
        body.feed(memoryview(raw)[:200])
    assert refused.value.code == "oversized"
