"""Q2C: keep what the query attends to."""

from kvcache.selection.base import ColumnMeans, RowDemand, Selection


class Q2C(Selection):
    """Query to context: attention from the query's rows, averaged over heads, rows and all layers (paper A)."""

    name = "q2c"
    last_layer = False

    def rows(self, context: int, query: int) -> RowDemand:
        """Raises ValueError for a sequence without a query."""
        if query < 1:
            raise ValueError(f"{self.name} needs a query after the context")
        return RowDemand(query, self.last_layer)

    def collector(self, context: int, query: int) -> ColumnMeans:
        return ColumnMeans(context, context, self.last_layer)


class Q2CLast(Q2C):
    """Q2C by the last layer's attention alone."""

    name = "q2c_last"
    last_layer = True
