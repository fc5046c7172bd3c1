"""ChunkKV: keep whole spans."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcache.selection.base import ColumnMeans, RowDemand, Selection


class _Chunked(ColumnMeans):
    """Column means in which every position has the mean of its chunk."""

    def __init__(self, context: int, first_row: int, size: int) -> None:
        super().__init__(context, first_row)
        self._size = size

    def scores(self) -> Tensor:
        scores = super().scores()
        chunk = torch.arange(len(scores), device=scores.device) // self._size
        sums = torch.zeros(int(chunk[-1]) + 1 if len(chunk) else 0, device=scores.device).index_add_(0, chunk, scores)
        return (sums / torch.bincount(chunk))[chunk]


@dataclass(frozen=True)
class ChunkKV(Selection):
    """ChunkKV (Liu et al. 2025): spans of `size` positions, by the attention from the query's rows to them.

    The global version: one set for all heads and layers. The original scores by its observation window; here the rows
    are those of `q2c`, so that the two differ only in the spans. The last span kept may be cut to the budget.
    """

    name = "chunkkv"
    size: int = 10

    def rows(self, context: int, query: int) -> RowDemand:
        """Raises ValueError for a sequence without a query."""
        if query < 1:
            raise ValueError(f"{self.name} needs a query after the context")
        return RowDemand(query)

    def collector(self, context: int, query: int) -> _Chunked:
        return _Chunked(context, context, self.size)
