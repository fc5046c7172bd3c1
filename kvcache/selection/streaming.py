"""StreamingLLM: keep attention sinks and recent positions."""

from dataclasses import dataclass

import torch

from kvcache.selection.base import Given, RowDemand, Selection


@dataclass(frozen=True)
class Streaming(Selection):
    """StreamingLLM (Xiao et al. 2023): the first `sinks` positions and the last ones, independent of attention."""

    name = "streaming"
    sinks: int = 4

    def rows(self, context: int, query: int) -> RowDemand:
        return RowDemand(0)

    def collector(self, context: int, query: int) -> Given:
        """Scores ascend with position; those of the sinks are above all others."""
        scores = torch.arange(context, dtype=torch.float32)
        scores[: self.sinks] = 2.0 * context - scores[: self.sinks]
        return Given(scores)
