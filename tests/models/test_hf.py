"""Edge and cloud on tiny random models of every supported type: what is handed over is enough, and nothing else is."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from kvcache import wire
from kvcache.cache import KVCache
from kvcache.selection import SELECTIONS, KeyCollector
from kvcache.selection.base import ColumnMeans
from kvcache.selection.rows import tail_probabilities
from models.hf import attention, captured
from models.hf.architecture import SUPPORTED
from models.hf.attention import Scoring, collecting
from models.hf.cloud import CloudModel, CloudModels
from models.hf.decode import Decoder, PlainDecoder, Start
from models.hf.edge import EdgeModel, Prefilled
from models.hf.loading import LoadedModel, ModelSpec, build_random
from models.hf.prefill import prefill
from models.hf.prompts import Prompt

torch.set_num_threads(1)
CONTEXT, QUERY, NEW = 40, 7, 12
PROMPT = torch.randint(3, 96, (CONTEXT + QUERY,), generator=torch.Generator().manual_seed(5)).tolist()
ASKED = Prompt.of(PROMPT[:CONTEXT], PROMPT[CONTEXT:])
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # so that attention and answers are not all the same
}


@cache
def loaded(model_type: str) -> LoadedModel:
    sizes: dict[str, Any] = dict(SIZES)
    if model_type != "gpt_neox":
        sizes |= {"num_key_value_heads": 2}
    if model_type == "mistral":
        sizes |= {"sliding_window": None}
    if model_type == "qwen3":
        sizes |= {"head_dim": 32}
    return build_random(ModelSpec(f"tiny-{model_type}", "random", "float32"), AutoConfig.for_model(model_type, **sizes))


@cache
def prefilled(model_type: str) -> Prefilled:
    selections = [make() for make in SELECTIONS.values()]
    return EdgeModel(loaded(model_type)).prefill(ASKED, selections)


def decoder_of(model_type: str, kind: str) -> Decoder:
    if kind == "plain":
        return PlainDecoder(loaded(model_type))
    from models.hf.captured import CapturedDecoder

    if reason := CapturedDecoder.unsuited(loaded(model_type)):
        pytest.skip(reason)
    return CapturedDecoder(loaded(model_type))


def next_logits(model: LoadedModel, start: Start) -> Tensor:
    """What the model says after the fed token."""
    keys = [(k[None], v[None]) for k, v in start.cache.layers]
    from transformers import DynamicCache

    with torch.no_grad():
        return model.model(
            input_ids=torch.tensor([[start.token]]),
            position_ids=torch.tensor([[start.cache.length]]),
            past_key_values=DynamicCache(keys, config=model.model.config),
        ).logits[0, -1]


def masked_logits(model: LoadedModel, hidden: list[int], hide_always: bool) -> Tensor:
    """Logits after the prompt by eager attention and an explicit mask, without any of our code.

    Args:
        hidden: context positions that the last token doesn't see.
        hide_always: nobody sees them, not even while the prompt is prefilled.
    """
    n = len(PROMPT)
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    seen[:, hidden] = False
    if not hide_always:
        seen[:-1] = torch.ones(n, n, dtype=torch.bool).tril()[:-1]
    seen |= torch.eye(n, dtype=torch.bool)  # a hidden row must see something; nobody looks at it
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    model.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model.model(input_ids=torch.tensor([PROMPT]), attention_mask=mask).logits[0, -1]
    finally:
        model.model.set_attn_implementation("scout")


@pytest.mark.parametrize("kind", ["plain", "captured"])
@pytest.mark.parametrize("model_type", SUPPORTED)
def test_full_equals_local_and_transformers_own(model_type: str, kind: str) -> None:
    decoder = decoder_of(model_type, kind)
    model = loaded(model_type)
    edge, cloud = EdgeModel(model, decoder), CloudModel(model, decoder)
    found = prefilled(model_type)
    local = edge.answer(found, NEW)
    handed = cloud.decode_cache(found.handover(), found.last_token, NEW)
    prompt = cloud.prefill_prune(ASKED, None, NEW)
    assert cloud.answers([handed.start, prompt.start])[0] == [local, local]
    ids = torch.tensor([PROMPT])
    reference = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    expected = [token for token in reference[0, len(PROMPT) :].tolist() if token != 2]
    assert list(local.tokens) == expected and local.stopped == (len(expected) < NEW)
    assert len(set(local.tokens)) > 1, "an answer that could not be wrong proves nothing"


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("model_type", ["qwen2", "gpt_neox"])
def test_everything_kept_is_full(model_type: str, name: str) -> None:
    found = prefilled(model_type)
    everything = SELECTIONS[name]().select(found.scores[name], 1.0, QUERY)
    cloud = CloudModel(loaded(model_type))
    whole = found.handover()
    starts = [
        cloud.decode_cache(found.handover(everything), found.last_token, NEW).start,
        cloud.prefill_prune(ASKED, everything, NEW).start,
        cloud.prefill_kept(ASKED, everything, NEW).start,
    ]
    for start in starts:
        assert torch.equal(start.cache.positions, whole.positions) and start.cache.length == whole.length
        for ours, theirs in zip(start.cache.layers, whole.layers, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    answers = cloud.answers(starts)[0]
    assert answers == [EdgeModel(loaded(model_type)).answer(found, NEW)] * 3


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_pruning_equals_masking(model_type: str) -> None:
    model, found = loaded(model_type), prefilled(model_type)
    kept = SELECTIONS["q2c"]().select(found.scores["q2c"], 0.5, QUERY)
    hidden = sorted(set(range(CONTEXT)) - set(kept.tolist()))
    cloud = CloudModel(model)
    by_cache = cloud.decode_cache(found.handover(kept), found.last_token, NEW).start
    by_tokens = cloud.prefill_prune(ASKED, kept, NEW).start
    only_kept = cloud.prefill_kept(ASKED, kept, NEW).start
    expected = masked_logits(model, hidden, hide_always=False)
    torch.testing.assert_close(next_logits(model, by_cache), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(next_logits(model, by_tokens), expected, atol=1e-4, rtol=1e-4)
    nobody_saw = masked_logits(model, hidden, hide_always=True)
    torch.testing.assert_close(next_logits(model, only_kept), nobody_saw, atol=1e-4, rtol=1e-4)
    unmasked = masked_logits(model, [], hide_always=False)
    assert (expected - unmasked).abs().max() > 1e-3 < (nobody_saw - expected).abs().max(), "three different things"


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_scores_are_those_of_eager_attention(model_type: str) -> None:
    model, found = loaded(model_type), prefilled(model_type)
    model.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attentions = model.model(input_ids=torch.tensor([PROMPT]), output_attentions=True).attentions
    finally:
        model.model.set_attn_implementation("scout")
    matrices = torch.cat(attentions)  # [layers, heads, n, n]
    for name, make in SELECTIONS.items():
        collector = make().collector(CONTEXT, QUERY)
        if isinstance(collector, KeyCollector):  # by keys, which attention doesn't show
            continue
        for layer, matrix in enumerate(matrices):
            collector.add(layer, matrix, 0)
        torch.testing.assert_close(found.scores[name], collector.scores(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        found.scores["q2c"], matrices[:, :, CONTEXT:, :CONTEXT].mean((0, 1, 2)), atol=1e-6, rtol=1e-5
    )
    norms = torch.stack([keys[:, :CONTEXT].norm(dim=-1) for keys, _ in found.cache.layers])
    torch.testing.assert_close(found.scores["knorm"], -norms.mean((0, 1)), atol=1e-5, rtol=1e-5)


def test_scoring_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = prefilled("qwen2").scores
    monkeypatch.setattr("models.hf.attention.MAX_ELEMENTS", 4 * 5 * len(PROMPT))  # less than a layer
    selections = [make() for make in SELECTIONS.values()]
    edge = EdgeModel(loaded("qwen2"))
    found = edge.prefill(ASKED, selections).scores
    monkeypatch.setattr("models.hf.attention.LONG_TAIL", 10)  # some of them at once
    at_once = edge.prefill(ASKED, selections).scores
    for name in SELECTIONS:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(at_once[name], expected[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "captured"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "mistral"])
def test_a_batch_answers_as_one_by_one(model_type: str, kind: str) -> None:
    decoder = decoder_of(model_type, kind)
    cloud = CloudModel(loaded(model_type), decoder)
    found = prefilled(model_type)
    starts = []
    for share, new in ((1.0, NEW), (0.5, 3), (0.1, NEW), (0.02, 25), (0.75, 1)):
        kept = SELECTIONS["snapkv"]().select(found.scores["snapkv"], max(share, 1 / CONTEXT), QUERY)
        starts.append(cloud.decode_cache(found.handover(kept), found.last_token, new).start)
    starts.append(
        cloud.prefill_prune(
            Prompt.of(PROMPT[: CONTEXT // 2 - 3], PROMPT[CONTEXT // 2 - 3 : CONTEXT // 2]), None, NEW
        ).start
    )
    alone = [cloud.answers([start])[0][0] for start in starts]
    assert cloud.answers(starts)[0] == alone
    assert cloud.answers(starts[::-1])[0] == alone[::-1]
    assert [len(answer.tokens) <= start.max_new_tokens for answer, start in zip(alone, starts, strict=True)]
    assert len(set(alone)) > 2


@pytest.mark.parametrize("kind", ["plain", "captured"])
def test_what_cannot_be_decoded_is_refused(kind: str) -> None:
    decoder = decoder_of("qwen2", kind)
    cache = prefilled("qwen2").handover()
    assert decoder.decode([]) == []
    foreign = KVCache(cache.layers[:2], cache.positions, cache.length)
    with pytest.raises(ValueError, match=r"the cache has 2 layers .* but tiny-qwen2 has 3 layers"):
        decoder.decode([Start(foreign, 5, 4)])
    with pytest.raises(ValueError, match="256"):
        decoder.decode([Start(cache, 5, 256)])
    with pytest.raises(ValueError, match=r"outside 0\.\.95"):
        decoder.decode([Start(cache, 96, 4)])
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        decoder.decode([Start(cache, 5, 0)])


def test_what_cannot_be_prefilled_is_refused() -> None:
    model = loaded("qwen2")
    for tokens, message in (([], "0 tokens"), ([1] * 257, "257 tokens"), ([3, -1], "outside"), ([3, 96], "outside")):
        with pytest.raises(ValueError, match=message):
            prefill(model, tokens)
    cloud = CloudModel(model)
    for positions in ([CONTEXT], [-1]):
        with pytest.raises(ValueError, match="outside the context of 40"):
            cloud.prefill_prune(ASKED, torch.tensor(positions), NEW)
    with pytest.raises(ValueError, match="strictly ascending"):
        cloud.prefill_prune(ASKED, torch.tensor([3, 3]), NEW)
    with pytest.raises(ValueError, match="strictly ascending"):
        cloud.prefill_kept(ASKED, torch.tensor([7, 3]), NEW)
    scoring = Scoring([SELECTIONS["q2c"]()], 0, 10, 5, model.geometry.layers)
    with pytest.raises(ValueError, match="scoring 15 tokens"), collecting(scoring):
        prefill(model, [5, 6, 7])


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_what_comes_over_the_wire_is_what_was_handed_over(share: float) -> None:
    sizes = SIZES | {"num_key_value_heads": 2}
    model = build_random(ModelSpec("tiny", "random", "bfloat16"), AutoConfig.for_model("qwen2", **sizes))
    found = EdgeModel(model).prefill(ASKED, [SELECTIONS["q2c"]()])
    sent = found.handover(SELECTIONS["q2c"]().select(found.scores["q2c"], share, QUERY))
    receiver = wire.Decoder({model.fingerprint: model.geometry})
    for buffer in wire.encode(sent, "bf16", model.fingerprint):
        receiver.feed(buffer)
    cloud = CloudModel(model)
    starts = [cloud.decode_cache(cache, found.last_token, NEW).start for cache in (sent, receiver.finish())]
    for a, b in zip(starts[0].cache.layers, starts[1].cache.layers, strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    answers = cloud.answers(starts)[0]
    assert answers[0] == answers[1]


def test_stop_tokens_end_answers() -> None:
    model, found = loaded("qwen2"), prefilled("qwen2")
    whole = EdgeModel(model).answer(found, NEW).tokens
    stopping = LoadedModel(
        model.spec, model.model, None, model.fingerprint, frozenset({whole[2]}), model.geometry, model.max_positions
    )
    first = whole.index(whole[2])
    for decoder in (PlainDecoder(stopping), None):
        answer = EdgeModel(stopping, decoder).answer(found, NEW)
        assert answer.tokens == whole[:first] and answer.stopped
    assert EdgeModel(model).answer(found, 1).tokens == whole[:1]


def test_a_worker_keeps_each_model_once() -> None:
    specs = [ModelSpec("toy", "random", "float32"), ModelSpec("toy", "random", "float32", seed=1)]
    models = CloudModels([*specs, specs[0]])
    a, b = models[specs[0]], models[specs[1]]
    assert a is not b and models.by_fingerprint(a.loaded.fingerprint) is a
    assert models.by_fingerprint(b.loaded.fingerprint) is b
    assert models.memory_bytes() == 2 * sum(4 * p.numel() for p in a.loaded.model.parameters())
    with pytest.raises(LookupError, match="none of toy, toy can read"):
        models.by_fingerprint(bytes(16))


def test_sums_score_as_rows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's kernels give, by plain attention here; selections that need rows still get them."""

    summed: list[int] = []

    class Sums:
        suits = staticmethod(lambda query, keys: True)

        @staticmethod
        def column_sums(
            queries: list[Tensor], keys: list[Tensor], m: int, scale: float, first_rows: list[int]
        ) -> list[Tensor]:
            n = keys[0].shape[2]
            summed.append(m)
            rows = [
                tail_probabilities(query[0, :, -m:], key[0], scale, n - m)
                for query, key in zip(queries, keys, strict=True)
            ]
            return [
                sum((some[:, first - n + m :].sum((0, 1)) for some in rows), torch.zeros(n)) for first in first_rows
            ]

    class LastRow(SELECTIONS["q2c"]):  # type: ignore[misc]
        name = "last row"

        def collector(self, context: int, query: int) -> "LastRowScores":
            return LastRowScores(context, context)

    class LastRowScores(ColumnMeans):
        def add(self, layer: int, probabilities: Tensor, first_row: int) -> None:
            super().add(layer, probabilities[:, -1:], first_row + probabilities.shape[1] - 1)

    model = EdgeModel(loaded("qwen2"))
    selections = [LastRow(), *(SELECTIONS[name]() for name in ("q2c", "q2c_last", "q2c_pooled", "snapkv", "h2o"))]
    expected = model.prefill(ASKED, selections).scores
    monkeypatch.setattr(attention, "FUSED", True)
    monkeypatch.setattr(attention, "fused_scoring", Sums, raising=False)
    for long_tail in (attention.LONG_TAIL, 16):  # h2o with the others, and layer by layer
        monkeypatch.setattr(attention, "LONG_TAIL", long_tail)
        found = model.prefill(ASKED, selections).scores
        for name, scores in expected.items():
            torch.testing.assert_close(found[name], scores, atol=1e-6, rtol=1e-4, msg=name)
    layers = model.loaded.geometry.layers
    assert sorted(summed) == sorted([47, 7] + layers * [47, 32] + [7, 7]), "rows of each call"


def test_a_decoders_buffers_grow_in_blocks() -> None:
    assert captured.grown(10, 0) == captured.MIN_CAPACITY
    assert captured.grown(2112, 0) == 2304
    assert captured.grown(2304, 2304) == 2304
    assert captured.grown(2305, 2304) == 3072, "by a quarter at least: every size is compiled anew"
    sizes, room = set(), 0
    for needed in range(1, 32_768):
        room = captured.grown(needed, room)
        sizes.add(room)
        assert room >= needed and room % captured.BLOCK == 0
    assert len(sizes) < 17
