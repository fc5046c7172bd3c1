"""Every selection keeps the contract; the published ones choose what their definitions say."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvcache.selection import SELECTIONS, KeyCollector, Selection
from kvcache.selection.rows import row_chunks, tail_probabilities
from kvcache.selection.snapkv import SnapKV

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 3, 4, 2, 8


def attention(length: int, seed: int = 0) -> list[Tensor]:
    """Causal probabilities [heads, length, length] of some layers, computed the plain way."""
    found = []
    for query, keys in projections(length, seed):
        repeated = keys.repeat_interleave(HEADS // KV_HEADS, 0)
        scores = query @ repeated.transpose(1, 2) * HEAD_DIM**-0.5
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        found.append(scores.masked_fill(hidden, -torch.inf).softmax(-1))
    return found


def projections(length: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(seed)
    return [
        (
            3 * torch.randn(HEADS, length, HEAD_DIM, generator=source),
            torch.randn(KV_HEADS, length, HEAD_DIM, generator=source),
        )
        for _ in range(LAYERS)
    ]


def scores_of(
    selection: Selection,
    context: int,
    query: int,
    layers: list[Tensor],
    step: int | None = None,
    seen: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Scores by the rows that the selection wants, `step` at a time."""
    demand = selection.rows(context, query)
    collector = selection.collector(context, query)
    first = context + query - demand.tail
    if demand.keys:
        for index, (asked, keys) in enumerate(seen):
            collector.see(index, asked, keys, HEAD_DIM**-0.5)  # type: ignore[attr-defined]
    for index, probabilities in enumerate(layers):
        if demand.last_layer and index < len(layers) - 1:
            continue
        for begin in range(first, context + query, step or demand.tail or 1):
            end = min(context + query, begin + (step or demand.tail))
            collector.add(index, probabilities[:, begin:end, :end], begin)
    return collector.scores()


@pytest.mark.parametrize("name", SELECTIONS)
@settings(max_examples=30, deadline=None)
@given(context=st.integers(1, 60), query=st.integers(1, 40), retention=st.floats(0.001, 1), seed=st.integers(0, 99))
def test_contract(name: str, context: int, query: int, retention: float, seed: int) -> None:
    selection = SELECTIONS[name]()
    layers, seen = attention(context + query, seed), projections(context + query, seed)
    scores = scores_of(selection, context, query, layers, seen=seen)
    assert scores.shape == (context,) and scores.dtype == torch.float32
    kept = selection.select(scores, retention, query)
    assert kept.dtype == torch.int64 and len(kept) == math.floor(retention * context + 1e-9)
    assert bool((kept.diff() > 0).all()) and bool(((kept >= 0) & (kept < context)).all())
    assert selection.select(scores, 1.0, query).tolist() == list(range(context)), "1.0 keeps everything"
    in_pieces = scores_of(SELECTIONS[name](), context, query, layers, step=7, seen=seen)
    torch.testing.assert_close(in_pieces, scores), "however the rows come"
    everything = selection.collector(context, query)
    if isinstance(everything, KeyCollector):
        return
    for index, probabilities in enumerate(layers):
        everything.add(index, probabilities, 0)
    torch.testing.assert_close(everything.scores(), scores), "rows that weren't asked for change nothing"


@pytest.mark.parametrize("name", SELECTIONS)
def test_equal_scores_give_the_first_positions(name: str) -> None:
    kept = SELECTIONS[name]().select(torch.ones(100), 0.1, 32)
    assert kept.tolist() == (list(range(5)) + list(range(95, 100)) if name == "h2o" else list(range(10)))


@pytest.mark.parametrize("name", SELECTIONS)
def test_wrong_input_is_refused(name: str) -> None:
    selection = SELECTIONS[name]()
    for retention in (0.0, -0.5, 1.01, math.nan):
        with pytest.raises(ValueError, match="retention"):
            selection.select(torch.ones(10), retention, 1)
    with pytest.raises(ValueError, match="not numbers"):
        selection.select(torch.tensor([1.0, math.nan]), 0.5, 1)
    if selection.rows(10, 1).tail:
        with pytest.raises(ValueError, match="no attention rows"):
            selection.collector(10, 1).scores()


@pytest.mark.parametrize(("retention", "context", "kept"), [(0.29, 100, 29), (0.1, 30, 3), (0.25, 7, 1), (0.1, 5, 0)])
def test_budget_is_the_floor_of_the_decimal(retention: float, context: int, kept: int) -> None:
    assert len(SELECTIONS["streaming"]().select(torch.ones(context), retention, 1)) == kept


def test_q2c_is_the_mean_attention_of_the_query() -> None:
    layers = attention(50)
    expected = torch.stack(layers)[:, :, 40:, :40].mean((0, 1, 2))
    torch.testing.assert_close(scores_of(SELECTIONS["q2c"](), 40, 10, layers), expected)
    expected = layers[-1][:, 40:, :40].mean((0, 1))
    torch.testing.assert_close(scores_of(SELECTIONS["q2c_last"](), 40, 10, layers), expected)
    collector = SELECTIONS["q2c_last"]().collector(40, 10)
    for index, probabilities in enumerate(layers):
        collector.add(index, probabilities[:, 40:], 40)
    torch.testing.assert_close(collector.scores(), expected), "earlier layers may come too"


def test_h2o_is_column_sums_and_what_is_recent() -> None:
    layers = attention(50)
    selection = SELECTIONS["h2o"]()
    scores = scores_of(selection, 40, 10, layers)
    columns = torch.stack(layers).sum((0, 1, 2))[:40]
    torch.testing.assert_close(scores / scores.sum(), columns / columns.sum())
    kept = selection.select(scores, 0.5, 10).tolist()
    assert kept == sorted([*columns[:30].topk(10).indices.tolist(), *range(30, 40)])


def test_snapkv_is_the_windows_attention_per_head_pooled() -> None:
    layers = attention(50)
    selection = SnapKV(window=16, kernel=5)
    scores = scores_of(selection, 40, 10, layers)
    per_head = torch.cat(layers)[:, -16:, :34].sum(1)  # as published: summed over the window, pooled by head
    expected = F.avg_pool1d(per_head[:, None], 5, stride=1, padding=2)[:, 0].mean(0) / 16
    torch.testing.assert_close(scores[:34], expected)
    kept = selection.select(scores, 0.5, 10).tolist()
    assert kept == sorted([*expected.topk(14).indices.tolist(), *range(34, 40)]), "the window is kept"
    assert selection.select(scores, 0.1, 10).tolist()[-2:] == [38, 39], "but half of the budget is for scores"
    assert len(set(selection.select(scores, 0.1, 10).tolist()) - {38, 39}) == 2


def test_streaming_keeps_sinks_and_what_is_recent() -> None:
    selection = SELECTIONS["streaming"]()
    scores = scores_of(selection, 100, 1, [])
    assert selection.select(scores, 0.1, 1).tolist() == [0, 1, 2, 3, 94, 95, 96, 97, 98, 99]
    assert selection.select(scores, 0.03, 1).tolist() == [0, 1, 2]


def test_random_is_seeded_and_even() -> None:
    from kvcache.selection.chance import Random

    def kept(seed: int) -> list[int]:
        selection = Random(seed)
        return selection.select(selection.collector(50, 1).scores(), 0.2, 1).tolist()

    assert kept(1) == kept(1) != kept(2)
    counts = torch.bincount(torch.tensor([p for seed in range(400) for p in kept(seed)]), minlength=50)
    assert counts.min() > 40 and counts.max() < 130, "80 expected of each position"


@pytest.mark.parametrize("name", ["q2c", "q2c_last", "snapkv"])
def test_what_the_query_looks_at_is_kept(name: str) -> None:
    length, context = 80, 70
    needles = [12, 13, 14, 50, 51, 52]
    keys = torch.zeros(KV_HEADS, length, HEAD_DIM)
    keys[:, needles, 0] = 4
    query = torch.zeros(HEADS, length, HEAD_DIM)
    query[:, context:, 0] = 4
    layers = [tail_probabilities(query, keys, HEAD_DIM**-0.5, 0)] * LAYERS
    selection = SELECTIONS[name]()
    kept = selection.select(scores_of(selection, context, 10, layers), 0.4, 10).tolist()
    assert set(needles) <= set(kept)


@pytest.mark.parametrize("m", [1, 5, 50])
def test_tail_rows_are_those_of_eager_attention(m: int) -> None:
    for (query, keys), expected in zip(projections(50), attention(50), strict=True):
        rows = tail_probabilities(query[:, 50 - m :], keys, HEAD_DIM**-0.5, 50 - m)
        torch.testing.assert_close(rows, expected[:, 50 - m :], rtol=1e-5, atol=1e-7)


def test_heads_must_share_evenly() -> None:
    with pytest.raises(ValueError, match="can't share"):
        tail_probabilities(torch.zeros(3, 1, 4), torch.zeros(2, 5, 4), 1.0, 4)


@given(st.integers(1, 40), st.integers(0, 39), st.integers(1, 4000))
@settings(deadline=None)
def test_chunks_are_all_rows_and_small(length: int, first: int, max_elements: int) -> None:
    first = min(first, length - 1)
    query, keys = projections(length)[0]
    expected = attention(length)[0]
    next_row = first
    for begin, rows in row_chunks(query[:, first:], keys, HEAD_DIM**-0.5, first, max_elements):
        assert begin == next_row
        next_row += rows.shape[1]
        assert rows.shape[2] == next_row, "only the columns that they may see"
        assert rows.shape[1] == 1 or rows.numel() <= max_elements
        torch.testing.assert_close(rows, expected[:, begin:next_row, :next_row], rtol=1e-5, atol=1e-7)
    assert next_row == length


def plain_loops(context: int, query: int, seed: int = 0) -> dict[str, Tensor]:
    """Each method by its definition: a loop over layers, heads, rows and positions, nothing else."""
    n, scale = context + query, HEAD_DIM**-0.5
    sums: dict[str, list[float]] = {name: [0.0] * context for name in ("tova", "q2c", "knorm", "keydiff", "expected")}
    for asked, keys in projections(n, seed):
        for head in range(HEADS):
            k = keys[head // (HEADS // KV_HEADS)].double()
            q = asked[head].double()
            for name, rows in (("tova", [n - 1]), ("q2c", range(context, n))):
                for row in rows:
                    logits = [float(q[row] @ k[j]) * scale for j in range(row + 1)]
                    total = sum(math.exp(logit) for logit in logits)
                    for j in range(context):
                        sums[name][j] += math.exp(logits[j]) / total / HEADS / LAYERS / len(rows)
            mean = sum(q[i] for i in range(n)) / n
            covariance = sum(torch.outer(q[i] - mean, q[i] - mean) for i in range(n)) / n
            expected = [float(k[j] @ mean * scale + k[j] @ covariance @ k[j] * scale**2 / 2) for j in range(context)]
            total = sum(math.exp(logit) for logit in expected)
            for j in range(context):
                sums["expected"][j] += math.exp(expected[j]) / total / HEADS / LAYERS
        for k in keys.double():
            directions = [k[j] / k[j].norm() for j in range(context)]
            anchor = sum(directions) / context
            for j in range(context):
                sums["knorm"][j] -= float(k[j].norm()) / KV_HEADS / LAYERS
                sums["keydiff"][j] -= float(directions[j] @ anchor / anchor.norm()) / KV_HEADS / LAYERS  # type: ignore[union-attr]
    return {name: torch.tensor(each, dtype=torch.float32) for name, each in sums.items()}


def test_methods_are_their_definitions_in_plain_loops() -> None:
    context, query = 30, 6
    layers, seen, expected = attention(context + query), projections(context + query), plain_loops(context, query)
    for name, loop in (("tova", "tova"), ("q2c", "q2c"), ("knorm", "knorm"), ("keydiff", "keydiff")):
        found = scores_of(SELECTIONS[name](), context, query, layers, seen=seen)
        torch.testing.assert_close(found, expected[loop], atol=1e-5, rtol=1e-5, msg=name)
    found = scores_of(SELECTIONS["expected_attention"](), context, query, layers, seen=seen)
    torch.testing.assert_close(found, expected["expected"], atol=1e-5, rtol=1e-5)
    spans = [sum(expected["q2c"][j] for j in range(b, b + 10)) / 10 for b in range(0, context, 10)]
    found = scores_of(SELECTIONS["chunkkv"](), context, query, layers)
    torch.testing.assert_close(found, torch.tensor([float(spans[j // 10]) for j in range(context)]))
    kept = SELECTIONS["chunkkv"]().select(found, 0.34, query).tolist()
    best = max(range(3), key=lambda span: spans[span])
    assert kept == list(range(10 * best, 10 * best + 10)), "a span, whole"
