"""Everything on the edge."""

from allocator.policies.static import Static
from kvcache.modes import LOCAL


class LocalOnly(Static):
    """`local` for every request: what an edge without a cloud would do."""

    name = "local_only"

    def __init__(self) -> None:
        self.mode = LOCAL
