"""Errors for data received over a link."""

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
    """Received bytes are not an acceptable cache or positions. `code` is a short name for counters and ledgers."""

    def __init__(self, reason: str, code: RefusalCode) -> None:
        super().__init__(reason)
        self.code: RefusalCode = code
