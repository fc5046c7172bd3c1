"""What a selection is: the attention rows it looks at, a score for each context position, and the positions it keeps.

A sequence is a context of `context` positions followed by a query of `query`. Selections choose among the context;
the query's positions are always kept by whoever prunes. All of them choose one set of positions for every layer and
head, so that the set can be sent by itself (`scout`) and a pruned cache stays rectangular.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL = 5  # positions over which SnapKV smooths


@dataclass(frozen=True, slots=True)
class RowDemand:
    """The rows of the attention matrices that a selection looks at.

    Attributes:
        tail: the last so many rows of the sequence: 0 for none, `context + query` for all.
        last_layer: only those of the last layer are looked at, so that others needn't be computed.
    """

    tail: int
    last_layer: bool = False


class Collector(Protocol):
    """Reduces attention rows to scores as they come, so that nobody holds them."""

    def add(self, layer: int, probabilities: Tensor, first_row: int) -> None:
        """Take rows of one layer; in any pieces, each row of a layer once.

        Several layers may come in one call, one behind the other as more heads, so scores must treat the heads of all
        layers alike. They never do for a demand of `last_layer`.

        Args:
            layer: its index, of several the last one's; layers come in ascending order.
            probabilities: float32 [heads, rows, columns], softmaxed; [layers * heads, rows, columns] of several layers.
                Columns beyond the last are zeros; rows that the selection didn't ask for are ignored.
            first_row: the position in the sequence of the first row.
        """
        ...

    def scores(self) -> Tensor:
        """float32 [context]: the higher, the more worth keeping.

        Raises:
            ValueError: rows that were asked for never came.
        """
        ...


class Selection(ABC):
    """A selection method: one subclass a method, stateless, whatever it can be told given to its constructor."""

    name: ClassVar[str]

    @abstractmethod
    def rows(self, context: int, query: int) -> RowDemand:
        """The attention rows that this selection wants."""

    @abstractmethod
    def collector(self, context: int, query: int) -> Collector:
        """A new collector for one sequence."""

    def recent(self, budget: int, query: int) -> int:
        """How many of the last context positions are kept whatever their scores; at most `budget`."""
        return 0

    def select(self, scores: Tensor, retention: float, query: int) -> Tensor:
        """The kept context positions: floor(retention * context) of them, those with the highest scores.

        Of equal scores, the first position wins.

        Args:
            scores: float32 [context], from a collector of this selection.
            retention: share of the context to keep, in (0, 1].
            query: length of the query, which the window of some selections covers first.

        Returns:
            int64, ascending, on the CPU.

        Raises:
            ValueError: a retention outside (0, 1], or scores that are not numbers.
        """
        context = len(scores)
        budget = budget_of(context, retention)
        if scores.isnan().any():
            raise ValueError(f"{self.name}: scores that are not numbers; is the model's attention finite?")
        last = context - self.recent(budget, query)
        best = scores[:last].argsort(descending=True, stable=True)[: budget - (context - last)]
        return torch.cat((best.sort().values.cpu(), torch.arange(last, context)))


def budget_of(context: int, retention: float) -> int:
    """floor(retention * context), where a retention such as 0.29 means the decimal number that it shows as.

    Raises:
        ValueError: a retention outside (0, 1].
    """
    if not 0 < retention <= 1:
        raise ValueError(f"a retention of {retention}; it must be above 0 and at most 1")
    return math.floor(retention * context + 1e-9)


class ColumnMeans:
    """Attention that each context position receives: the mean over heads and rows from `first_row` on, and over layers.

    With `last_layer`, a later layer replaces what came of the earlier ones.
    """

    def __init__(self, context: int, first_row: int, last_layer: bool = False) -> None:
        self._context, self._first_row, self._last_layer = context, first_row, last_layer
        self._sums: Tensor | None = None
        self._rows = 0  # heads x rows summed up
        self._layer = -1

    def add(self, layer: int, probabilities: Tensor, first_row: int) -> None:
        wanted = probabilities[:, max(0, self._first_row - first_row) :, : self._context]
        if not wanted.shape[1]:
            return
        if self._sums is None or (self._last_layer and layer != self._layer):
            self._sums = torch.zeros(self._context, dtype=torch.float32, device=probabilities.device)
            self._rows = 0
        self._sums[: wanted.shape[2]] += wanted.sum((0, 1))
        self._rows += wanted.shape[0] * wanted.shape[1]
        self._layer = layer

    def scores(self) -> Tensor:
        if self._sums is None:
            raise ValueError("no attention rows came to score the context by")
        return self._sums / self._rows


class Pooled(ColumnMeans):
    """Column means, smoothed over neighbouring positions; what the window itself receives stays out of it."""

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
