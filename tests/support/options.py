"""Options of a request, in few words."""

from allocator.problem import ModeOption
from kvcache.modes import parse_mode


def option(mode: str, wire_bytes: int, edge_ms: float, cloud_ms: float, quality: float) -> ModeOption:
    """The option of a mode by its name."""
    return ModeOption(parse_mode(mode), wire_bytes, edge_ms, cloud_ms, quality)
