"""Q2C: keep the context positions that the query attends to."""

from kvcache.selection.base import KERNEL, ColumnMeans, Pooled, RowDemand, Selection


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
    """Q2C with the last layer's attention only."""

    name = "q2c_last"
    last_layer = True


class Q2CPooled(Q2C):
    """Q2C smoothed over neighbouring positions like SnapKV, so that the successors of an attended position stay too.

    A prompt's attention finds the first token of an answer. Decoding attends to the next ones only after that token,
    so `q2c` drops them. docs/quality.md has the difference.
    """

    name = "q2c_pooled"

    def collector(self, context: int, query: int) -> Pooled:
        return Pooled(context, context, KERNEL)
