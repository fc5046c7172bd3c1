"""H2O: keep heavy hitters and recent positions."""

from kvcache.selection.base import ColumnMeans, RowDemand, Selection


class H2O(Selection):
    """Heavy-hitter oracle (Zhang et al. 2023), the global version: scores averaged over heads and layers.

    Half of the budget goes to the last context positions, half to those with the largest column sums over all rows. The
    original chooses per head and while decoding; here the whole prompt is prefilled before anything is dropped.
    """

    name = "h2o"

    def rows(self, context: int, query: int) -> RowDemand:
        return RowDemand(context + query)

    def collector(self, context: int, query: int) -> ColumnMeans:
        return ColumnMeans(context, 0)

    def recent(self, budget: int, query: int) -> int:
        return budget // 2
