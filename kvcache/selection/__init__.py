"""Selection methods, one per file. Add yours to `SELECTIONS`, and the selection tests run on it."""

from collections.abc import Callable

from kvcache.selection.base import Collector, KeyCollector, RowDemand, Selection
from kvcache.selection.chance import Random
from kvcache.selection.chunks import ChunkKV
from kvcache.selection.h2o import H2O
from kvcache.selection.keys import ExpectedAttention, KeyDiff, Knorm
from kvcache.selection.q2c import Q2C, Q2CLast, Q2CPooled
from kvcache.selection.snapkv import SnapKV
from kvcache.selection.streaming import Streaming
from kvcache.selection.tova import TOVA

SELECTIONS: dict[str, Callable[[], Selection]] = {
    selection.name: selection
    for selection in (
        *(Q2C, Q2CLast, Q2CPooled, SnapKV, H2O, Streaming, Random),
        *(TOVA, ChunkKV, KeyDiff, Knorm, ExpectedAttention),
    )
}

__all__ = ["SELECTIONS", "Collector", "KeyCollector", "RowDemand", "Selection"]
