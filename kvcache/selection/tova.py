"""TOVA: keep what the last token attends to."""

from kvcache.selection.base import ColumnMeans, RowDemand, Selection


class TOVA(Selection):
    """Token omission via attention (Oren et al. 2024), after the prompt: attention of its last row.

    The global version: averaged over heads (as the original does in each layer) and layers.
    """

    name = "tova"

    def rows(self, context: int, query: int) -> RowDemand:
        return RowDemand(1)

    def collector(self, context: int, query: int) -> ColumnMeans:
        return ColumnMeans(context, context + query - 1)
