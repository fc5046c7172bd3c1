"""Operating modes as they are written: `full`, `int8`, `q2c@0.5+int8`, `scout@0.25`, `prompt`, `local`."""

from dataclasses import dataclass
from typing import Literal

from kvcache.quantizers import QUANTIZERS
from kvcache.selection import SELECTIONS

FULL = "bf16"  # the quantizer of `full`, and of a selection without another
MIXED = "mixed_int4"  # a plan by layer, of which a probe is the author: see `kvcache.plans`
QUANTIZER_NAMES = (*QUANTIZERS, MIXED)
SCOUT_SELECTION = "q2c_pooled"  # the papers' q2c loses answers of several tokens: see docs/quality.md
SCOUT_RETENTION = 0.75

Kind = Literal["cache", "scout", "prompt", "local"]


@dataclass(frozen=True, slots=True)
class OperatingMode:
    """What an edge agent sends: its cache, positions only, the text, or nothing.

    Attributes:
        kind: `cache`, `scout` (positions), `prompt` (text) or `local` (nothing).
        selection: which positions (`cache` and `scout`); None for all of them.
        retention: the share of context positions kept, in (0, 1]; 1 where there is no selection.
        quantizer: of QUANTIZER_NAMES for `cache`, else None.
    """

    kind: Kind
    selection: str | None = None
    retention: float = 1.0
    quantizer: str | None = None

    def __str__(self) -> str:
        if self.kind != "cache":
            scouts = self.kind == "scout" and self.retention != SCOUT_RETENTION
            return f"{self.kind}@{self.retention!r}" if scouts else self.kind
        if self.selection is None:
            return "full" if self.quantizer == FULL else str(self.quantizer)
        quantizer = "" if self.quantizer == FULL else f"+{self.quantizer}"
        return f"{self.selection}@{self.retention!r}{quantizer}"


def parse_mode(text: str) -> OperatingMode:
    """The mode that a name says.

    Raises:
        ValueError: not a mode; the message says what is allowed.
    """
    selection, at, rest = text.partition("@")
    if text in ("prompt", "local"):
        return OperatingMode("prompt" if text == "prompt" else "local")
    if selection == "scout":
        return OperatingMode("scout", SCOUT_SELECTION, _retention(rest, text) if at else SCOUT_RETENTION)
    if not at:
        name = FULL if text == "full" else text
        if name not in QUANTIZER_NAMES:
            raise ValueError(f"no mode {text!r}; there are {allowed_modes()}")
        return OperatingMode("cache", quantizer=name)
    if selection not in SELECTIONS:
        raise ValueError(f"no selection {selection!r} in mode {text!r}; there are {', '.join(SELECTIONS)}")
    share, plus, quantizer = rest.partition("+")
    if plus and quantizer not in QUANTIZER_NAMES:
        raise ValueError(f"no quantizer {quantizer!r} in mode {text!r}; there are {', '.join(QUANTIZER_NAMES)}")
    return OperatingMode("cache", selection, _retention(share, text), quantizer if plus else FULL)


def allowed_modes() -> str:
    """What `parse_mode` takes, for messages."""
    names = ["full", *QUANTIZER_NAMES, "<selection>@<retention>", "<selection>@<retention>+<quantizer>"]
    names += ["scout", "scout@<retention>", "prompt", "local"]
    return f"{', '.join(names)}, with the selections {', '.join(SELECTIONS)}"


def _retention(text: str, mode: str) -> float:
    try:
        retention = float(text)
    except ValueError:
        retention = 0.0
    if not 0 < retention <= 1:
        raise ValueError(f"a retention of {text!r} in mode {mode!r}; it is a number above 0 and at most 1")
    return retention
