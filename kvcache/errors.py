"""Refusals of what came over a link."""

from typing import Literal, get_args

RefusalCode = Literal[
    "magic",
    "version",
    "header",
    "checksum",
    "foreign_model",
    "geometry",
    "oversized",
    "bad_positions",
    "bad_layer",
    "bad_values",
    "truncated",
    "trailing",
]
REFUSAL_CODES: tuple[RefusalCode, ...] = get_args(RefusalCode)


class WireError(Exception):
    """Bytes that are no acceptable cache or positions. `code` is one short word, for counters and ledgers."""

    def __init__(self, reason: str, code: RefusalCode) -> None:
        super().__init__(reason)
        self.code: RefusalCode = code
