"""Random: the selection that every other one must beat."""

from dataclasses import dataclass

import torch

from kvcache.selection.base import Given, RowDemand, Selection


@dataclass(frozen=True)
class Random(Selection):
    """Every set of positions equally likely; the same seed and context length give the same one."""

    name = "random"
    seed: int = 0

    def rows(self, context: int, query: int) -> RowDemand:
        return RowDemand(0)

    def collector(self, context: int, query: int) -> Given:
        return Given(torch.rand(context, generator=torch.Generator().manual_seed(self.seed)))
