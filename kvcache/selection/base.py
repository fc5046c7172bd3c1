"""The interface of selections: the attention rows that they need, scores of context positions, the kept positions.

A sequence is a context of `context` positions followed by a query of `query`. Selections choose among the context;
pruning always keeps the query. All selections choose one set of positions for every layer and head, so that the set
can be sent alone (`scout`) and a pruned cache stays rectangular.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL = 5  # positions over which SnapKV smooths


@dataclass(frozen=True, slots=True)
class RowDemand:
    """The rows of the attention matrices that a selection needs.

    Attributes:
        tail: the number of last rows of the sequence: 0 for none, `context + query` for all.
        last_layer: whether only the last layer's rows are needed.
        keys: whether the collector wants to `see` every layer's queries and keys (see `KeyCollector`).
    """

    tail: int
    last_layer: bool = False
    keys: bool = False


class Collector(Protocol):
    """Reduces attention rows to scores incrementally, so that the rows needn't be stored."""

    def add(self, layer: int, probabilities: Tensor, first_row: int) -> None:
        """Add rows of one layer, in any pieces, each row of a layer once.

        One call may hold several layers, concatenated as more heads, so scores must treat the heads of all layers
        alike. With a demand of `last_layer`, each call holds one layer.

        Args:
            layer: its index (of several, the last one's); layers are added in ascending order.
            probabilities: float32 [heads, rows, columns], softmaxed; [layers * heads, rows, columns] of several layers.
                Missing columns at the end are zeros; rows that weren't demanded are ignored.
            first_row: the position in the sequence of the first row.
        """
        ...

    def scores(self) -> Tensor:
        """Scores, float32 [context]; positions with higher scores are kept.

        Raises:
            ValueError: no demanded row was added.
        """
        ...


@runtime_checkable
class KeyCollector(Collector, Protocol):
    """A collector that scores by queries and keys themselves."""

    def see(self, layer: int, query: Tensor, keys: Tensor, scale: float) -> None:
        """See one layer; each layer comes once.

        Args:
            query: [heads, n, head_dim], rotated, of the whole sequence; keys: [kv_heads, n, head_dim], rotated.
            scale: that attention multiplies their products by.
        """
        ...


class Selection(ABC):
    """A selection method: a stateless subclass; parameters go to its constructor."""

    name: ClassVar[str]

    @abstractmethod
    def rows(self, context: int, query: int) -> RowDemand:
        """The attention rows that this selection needs."""

    @abstractmethod
    def collector(self, context: int, query: int) -> Collector:
        """A new collector for one sequence."""

    def recent(self, budget: int, query: int) -> int:
        """The number of last context positions that are kept regardless of scores; at most `budget`."""
        return 0

    def select(self, scores: Tensor, retention: float, query: int) -> Tensor:
        """The kept context positions: the floor(retention * context) with the highest scores.

        Ties go to the first position.

        Args:
            scores: float32 [context], from a collector of this selection.
            retention: share of the context to keep, in (0, 1].
            query: length of the query, which counts towards the window of some selections.

        Returns:
            int64, ascending, on the CPU.

        Raises:
            ValueError: the retention is outside (0, 1], or a score is NaN.
        """
        context = len(scores)
        budget = budget_of(context, retention)
        if scores.isnan().any():
            raise ValueError(f"{self.name}: scores that are not numbers; is the model's attention finite?")
        last = context - self.recent(budget, query)
        best = scores[:last].argsort(descending=True, stable=True)[: budget - (context - last)]
        return torch.cat((best.sort().values.cpu(), torch.arange(last, context)))


def budget_of(context: int, retention: float) -> int:
    """floor(retention * context), with 0.29 taken as the exact decimal, not its binary approximation.

    Raises:
        ValueError: the retention is outside (0, 1].
    """
    if not 0 < retention <= 1:
        raise ValueError(f"a retention of {retention}; it must be above 0 and at most 1")
    return math.floor(retention * context + 1e-9)


class ColumnMeans:
    """The mean attention of each context position, over heads, layers and the rows from `first_row` on.

    With `last_layer`, each layer replaces the earlier ones. On a GPU, sums come instead of rows, unless a subclass
    overrides `add` or `add_sums`.
    """

    def __init__(self, context: int, first_row: int, last_layer: bool = False) -> None:
        self._context, self.first_row, self._last_layer = context, first_row, last_layer
        self._sums: Tensor | None = None
        self._rows = 0  # heads x rows in the sums
        self._layer = -1

    def add(self, layer: int, probabilities: Tensor, first_row: int) -> None:
        wanted = probabilities[:, max(0, self.first_row - first_row) :, : self._context]
        if wanted.shape[1]:
            self.add_sums(layer, wanted.sum((0, 1)), wanted.shape[0] * wanted.shape[1])

    def add_sums(self, layer: int, sums: Tensor, rows: int) -> None:
        """Add what rows sum up to, instead of `add` with these rows.

        Args:
            sums: float32 [columns], over the rows from position `first_row` on; missing columns are zeros.
            rows: how many these are, over all heads and layers of this call.
        """
        if self._sums is None or (self._last_layer and layer != self._layer):
            self._sums = torch.zeros(self._context, dtype=torch.float32, device=sums.device)
            self._rows = 0
        sums = sums[: self._context]
        self._sums[: len(sums)] += sums
        self._rows += rows
        self._layer = layer

    def scores(self) -> Tensor:
        if self._sums is None:
            raise ValueError("no attention rows were added to score the context")
        return self._sums / self._rows


class Pooled(ColumnMeans):
    """Column means smoothed over neighbouring positions, except for those in the window itself."""

    def __init__(self, context: int, first_row: int, kernel: int) -> None:
        super().__init__(context, first_row)
        self._before, self._kernel = min(context, first_row), kernel

    def scores(self) -> Tensor:
        scores = super().scores()
        if self._before:
            before = scores[: self._before].view(1, 1, -1)
            pooled = F.avg_pool1d(before, self._kernel, stride=1, padding=self._kernel // 2)
            scores[: self._before] = pooled.view(-1)
        return scores


class Given:
    """A collector for scores that don't depend on attention."""

    def __init__(self, scores: Tensor) -> None:
        self._scores = scores

    def add(self, layer: int, probabilities: Tensor, first_row: int) -> None:
        pass

    def scores(self) -> Tensor:
        return self._scores
