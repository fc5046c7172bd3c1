"""Streaming: attention sinks and what is recent."""

from dataclasses import dataclass

import torch

from kvcache.selection.base import Given, RowDemand, Selection


@dataclass(frozen=True)
class Streaming(Selection):
    """StreamingLLM (Xiao et al. 2023): the first `sinks` positions and the last ones, whatever they say."""

    name = "streaming"
    sinks: int = 4

    def rows(self, context: int, query: int) -> RowDemand:
        return RowDemand(0)

    def collector(self, context: int, query: int) -> Given:
        """Scores are positions, so that later is better; the sinks' are above all of them."""
        scores = torch.arange(context, dtype=torch.float32)
        scores[: self.sinks] = 2.0 * context - scores[: self.sinks]
        return Given(scores)
