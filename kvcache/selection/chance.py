"""Random selection, the baseline of all others."""

from dataclasses import dataclass

import torch

from kvcache.selection.base import Given, RowDemand, Selection


@dataclass(frozen=True)
class Random(Selection):
    """A uniformly random set of positions, determined by seed and context length."""

    name = "random"
    seed: int = 0

    def rows(self, context: int, query: int) -> RowDemand:
        return RowDemand(0)

    def collector(self, context: int, query: int) -> Given:
        return Given(torch.rand(context, generator=torch.Generator().manual_seed(self.seed)))
