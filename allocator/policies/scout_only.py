"""Every request as the positions that a scout found."""

from allocator.policies.static import Static
from kvcache.modes import SCOUT


class ScoutOnly(Static):
    """`scout` for every request on an equal share: the edge points, the cloud does the rest."""

    name = "scout_only"

    def __init__(self) -> None:
        self.mode = SCOUT
