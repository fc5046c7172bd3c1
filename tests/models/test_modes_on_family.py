"""Modes on a model that learned something: what must answer the same does, through the real bytes."""

import pytest
import torch

from kvcache.modes import parse_mode
from kvcache.selection import SELECTIONS
from kvcache.wire import Limits
from models.datasets import load_examples
from models.hf.bodies import CacheBody, Handover, cache_bytes, write_cache
from models.hf.cloud import CloudModel
from models.hf.edge import EdgeModel, Prefilled
from models.hf.loading import ModelSpec, load_model
from models.hf.words import context_tokens, query_tokens

torch.set_num_threads(1)
EXAMPLES = load_examples("family", 40)
NEW = 16


@pytest.fixture(scope="module")
def edge() -> EdgeModel:
    return EdgeModel(load_model(ModelSpec("family/tiny", dtype="float32")))


@pytest.fixture(scope="module")
def prefilled(edge: EdgeModel) -> list[Prefilled]:
    selections = [make() for make in SELECTIONS.values()]
    texts = [(context_tokens(edge.loaded, e.context), query_tokens(edge.loaded, e.question)) for e in EXAMPLES]
    return [edge.prefill(context, query, selections) for context, query in texts]


def answers(edge: EdgeModel, prefilled: list[Prefilled], mode: str) -> list[tuple[int, ...]]:
    """What a cloud worker makes of the bytes that the mode sends."""
    cloud, parsed, found = CloudModel(edge.loaded, edge.decoder), parse_mode(mode), []
    plan = str(parsed.quantizer)
    for one in prefilled:
        kept = None
        if parsed.selection is not None:
            chosen = SELECTIONS[parsed.selection]()
            kept = chosen.select(one.scores[parsed.selection], parsed.retention, one.query).cpu()
        cache = one.handover(kept)
        raw = b"".join(write_cache(Handover(cache, one.last_token), plan, edge.loaded.fingerprint))
        assert len(raw) == cache_bytes(cache.geometry, plan, cache.positions, cache.length), "sizes are theory's"
        body = CacheBody({edge.loaded.fingerprint: edge.loaded.geometry}, Limits(), plan, len(raw), "cpu")
        body.feed(memoryview(raw))
        handover = body.finish()
        start = cloud.decode_cache(handover.cache, handover.last_token, NEW).start
        found.append(cloud.answers([start])[0][0].tokens)
    return found


def test_full_answers_token_for_token_as_the_edge_itself(edge: EdgeModel, prefilled: list[Prefilled]) -> None:
    """bf16 on the wire rounds a float32 cache, so where two words are as likely `full` may take the other one."""
    local = [edge.answer(one, NEW).tokens for one in prefilled]
    same = [a == b for a, b in zip(answers(edge, prefilled, "full"), local, strict=True)]
    assert sum(same) >= len(same) - 1


def test_full_of_a_bfloat16_model_loses_nothing() -> None:
    edge = EdgeModel(load_model(ModelSpec("family/tiny", dtype="bfloat16")))
    texts = [(context_tokens(edge.loaded, e.context), query_tokens(edge.loaded, e.question)) for e in EXAMPLES]
    prefilled = [edge.prefill(context, query) for context, query in texts]
    for one in prefilled:
        cache = one.handover()
        raw = b"".join(write_cache(Handover(cache, one.last_token), "bf16", edge.loaded.fingerprint))
        body = CacheBody({edge.loaded.fingerprint: edge.loaded.geometry}, Limits(), "bf16", len(raw), "cpu")
        body.feed(memoryview(raw))
        for layer, sent in zip(body.finish().cache.layers, cache.layers, strict=True):
            assert torch.equal(layer[0], sent[0]) and torch.equal(layer[1], sent[1])


def test_int8_answers_like_full(edge: EdgeModel, prefilled: list[Prefilled]) -> None:
    same = [a == b for a, b in zip(answers(edge, prefilled, "int8"), answers(edge, prefilled, "full"), strict=True)]
    assert sum(same) >= 0.95 * len(same)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_everything_kept_answers_like_full(edge: EdgeModel, prefilled: list[Prefilled], selection: str) -> None:
    assert answers(edge, prefilled[:10], f"{selection}@1.0") == answers(edge, prefilled[:10], "full")
