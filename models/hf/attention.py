"""Attention that provides rows to selections, at nearly the cost of plain SDPA attention.

Models are loaded with the attention function registered here. While `collecting`, it stores the last queries of every
layer; their rows of the attention matrices are computed afterwards, many layers at once. Within each layer, these small
operations would be bound by kernel launches: at a thousand tokens, half as long as the rest of the prefill. On a GPU
with Triton, `kvcache.fused` sums the columns of all layers without storing rows, for collectors that take sums.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kvcache.fused import AVAILABLE as FUSED
from kvcache.selection import KeyCollector, Selection
from kvcache.selection.base import Collector, ColumnMeans
from kvcache.selection.rows import row_chunks

if FUSED:
    from kvcache.fused import scoring as fused_scoring

ATTENTION = "scout"
"""The name under which transformers knows this attention function."""

LONG_TAIL = 1024  # rows; longer demands are served layer by layer, since all queries take more memory than the cache
LONG = 2048  # tokens; longer prefills are compute-bound, and copies of the tails let the rest be freed
MAX_ELEMENTS = 2**24  # of probabilities at a time: 64 MB in float32 stay near a GPU's cache

Saved = tuple[int, Tensor, Tensor]
"""A layer, its queries [1, heads, m, head_dim], at least those of the tail, and its keys [1, kv_heads, n, head_dim]."""


class Scoring:
    """Scores of one sequence's context by several selections at once, from one prefill.

    Args:
        before: if the sequence's beginning was prefilled before, the queries of that, as a `Recorder` has them.
        selections: with distinct names.
        head, context, query: tokens of each; the sequence is one after the other. Selections see head and context as
            one, and only the context's scores are returned.
        layers: the model's number of layers.
    """

    def __init__(
        self,
        selections: Sequence[Selection],
        head: int,
        context: int,
        query: int,
        layers: int,
        before: Sequence[Tensor] = (),
    ) -> None:
        self.before = before
        self._head, self._length, self._layers = head, head + context + query, layers
        self._collectors = {s.name: s.collector(head + context, query) for s in selections}
        demands = {s.name: s.rows(head + context, query) for s in selections}
        self._keyed = [(name, self._collectors[name]) for name, d in demands.items() if d.keys]
        self._at_once = {name: d for name, d in demands.items() if d.tail > LONG_TAIL}
        self._later = {name: d for name, d in demands.items() if 0 < d.tail <= LONG_TAIL}
        self._tail = max((d.tail for d in self._later.values() if not d.last_layer), default=0)
        self._last_tail = max((d.tail for d in self._later.values()), default=0)
        self._saved: list[Saved] = []
        self._scale = 1.0

    def see(self, layer: int, query: Tensor, keys: Tensor, scale: float) -> None:
        """Record one layer's queries [1, heads, n, head_dim] and keys [1, kv_heads, n, head_dim], rotated.

        Raises:
            ValueError: the tensors don't hold exactly the sequence to be scored.
        """
        if self.before:
            query = torch.cat((self.before[layer], query), 2)
        if query.shape[0] != 1 or query.shape[2] != self._length or keys.shape[2] != self._length:
            raise ValueError(f"scoring {self._length} tokens, not {tuple(query.shape)} on {tuple(keys.shape)}")
        for _, collector in self._keyed:
            if isinstance(collector, KeyCollector):
                collector.see(layer, query[0], keys[0], scale)
        for name, demand in self._at_once.items():
            if not demand.last_layer or layer == self._layers - 1:
                self._scale = scale
                self._add([name], [(layer, query, keys)], demand.tail)
        tail = self._tail if layer < self._layers - 1 else self._last_tail
        if tail:
            self._saved.append((layer, query if self._length <= LONG else query[:, :, -tail:].clone(), keys))
            self._scale = scale

    def scores(self) -> dict[str, Tensor]:
        """The scores of each selection by name, float32 [context]."""
        for last_layer in (False, True):
            names = [name for name, d in self._later.items() if d.last_layer == last_layer]
            saved = self._saved[-1:] if last_layer else self._saved
            if not names:
                continue
            tail = max(self._later[name].tail for name in names)
            self._add(names, saved, tail)
        self._saved.clear()
        return {name: collector.scores()[self._head :] for name, collector in self._collectors.items()}

    def _add(self, names: list[str], saved: list[Saved], tail: int) -> None:
        """Pass the attention of the last `tail` queries to collectors: as sums by fused kernels, else as rows."""
        if FUSED and fused_scoring.suits(saved[0][1], saved[0][2]):
            fused = {name: c for name in names if takes_sums(c := self._collectors[name])}
            if fused:
                self._add_sums(fused, saved, tail)
            names = [name for name in names if name not in fused]
        if names:
            self._add_rows(names, saved, tail)

    def _add_sums(self, collectors: dict[str, ColumnMeans], saved: list[Saved], tail: int) -> None:
        first = {name: max(c.first_row, self._length - tail) for name, c in collectors.items()}
        first_rows = sorted(set(first.values()))
        queries, keys = [query for _, query, _ in saved], [keys for _, _, keys in saved]
        sums = fused_scoring.column_sums(queries, keys, tail, self._scale, first_rows)
        rows = len(saved) * queries[0].shape[1]
        for name, collector in collectors.items():
            collector.add_sums(saved[-1][0], sums[first_rows.index(first[name])], rows * (self._length - first[name]))

    def _add_rows(self, names: list[str], saved: list[Saved], tail: int) -> None:
        """Several layers are concatenated, as if the last one had all their heads: collectors average over both."""
        step = max(1, MAX_ELEMENTS // (saved[0][1].shape[1] * tail * self._length))
        for begin in range(0, len(saved), step):
            some = saved[begin : begin + step]
            keys = torch.cat([keys[0] for _, _, keys in some])
            query = torch.cat([query[0, :, -tail:] for _, query, _ in some])
            for row, probabilities in row_chunks(query, keys, self._scale, self._length - tail, MAX_ELEMENTS):
                for name in names:
                    self._collectors[name].add(some[-1][0], probabilities, row)


def takes_sums(collector: Collector) -> TypeGuard[ColumnMeans]:
    """Whether sums of rows are as good as the rows for a collector."""
    if not isinstance(collector, ColumnMeans):
        return False
    return type(collector).add is ColumnMeans.add and type(collector).add_sums is ColumnMeans.add_sums


class Recorder:
    """Keeps the queries of every layer of a prefill, for a `Scoring` of what comes after it."""

    def __init__(self) -> None:
        self.before: Sequence[Tensor] = ()
        self.queries: list[Tensor] = []  # [1, heads, n, head_dim] of each layer

    def see(self, layer: int, query: Tensor, keys: Tensor, scale: float) -> None:
        self.queries.append(query)


_SCORING: ContextVar[Scoring | Recorder | None] = ContextVar("scoring", default=None)


@contextmanager
def collecting(scoring: Scoring | Recorder) -> Iterator[None]:
    """Score, or record, the attention of models that run in this context (and this thread or task)."""
    token = _SCORING.set(scoring)
    try:
        yield
    finally:
        _SCORING.reset(token)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *_: Any,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Transformers' SDPA attention; see its `AttentionInterface` for the arguments.

    Some libraries that wrap attention functions (kvpress) pass `dropout` by position: it is 0 here.
    """
    scoring = _SCORING.get()
    if scoring is not None:
        if attention_mask is not None and not scoring.before:
            raise ValueError("scores are for one sequence without padding, but there is a mask")
        scoring.see(int(module.layer_idx), query, key, settings["scaling"])  # type: ignore[arg-type]
    return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # otherwise masks would silently be missing
