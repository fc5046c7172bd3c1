"""SnapKV: keep clusters of positions that the end of the prompt attends to."""

from dataclasses import dataclass

from kvcache.selection.base import KERNEL, Pooled, RowDemand, Selection


@dataclass(frozen=True)
class SnapKV(Selection):
    """SnapKV (Li et al. 2024), the global version: scores averaged over heads and layers, one set for all of them.

    The observation window is the last `window` positions of the prompt: the query, then the end of the context. Scores
    are the window's attention, smoothed by an average pool (pooling each head first gives the same average). The window
    is kept, but takes at most half of the budget; the original refuses budgets that its window fills. The original
    chooses per head, which a rectangular cache with one set of positions can't represent.
    """

    name = "snapkv"
    window: int = 32
    kernel: int = KERNEL

    def rows(self, context: int, query: int) -> RowDemand:
        return RowDemand(min(self.window, context + query))

    def collector(self, context: int, query: int) -> Pooled:
        return Pooled(context, max(0, context + query - self.window), self.kernel)

    def recent(self, budget: int, query: int) -> int:
        return min(max(0, self.window - query), budget // 2)
