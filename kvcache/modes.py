"""Operating modes: what an edge agent sends. Pure values, without torch: everything from profile to ledger names modes.

Written: `full`, `int8`, `q2c@0.5+int8`, `scout@0.25`, `prompt`, `local`, and names of a profile's own (`q2c50_full`).
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

UNQUANTIZED = "bf16"  # the quantizer of `full`, and of a selection without another
MIXED = "mixed_int4"  # a plan by layer, which a probe finds: see `kvcache.plans`
QUANTIZER_NAMES = (  # of kvcache.quantizers, and MIXED
    *("bf16", "int8", "int4", "int8_kivi", "int4_kivi", "delta", "k8v4", "k16v4", "int4_hadamard"),
    MIXED,
)
SELECTION_NAMES = (  # of kvcache.selection
    *("q2c", "q2c_last", "q2c_pooled", "snapkv", "h2o", "streaming", "random"),
    *("tova", "chunkkv", "keydiff", "knorm", "expected_attention"),
)
SCOUT_SELECTION = "q2c_pooled"  # the papers' q2c loses answers of several tokens: see docs/quality.md
SCOUT_RETENTION = 0.75
OWN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")

Kind = Literal["cache", "scout", "prompt", "local"]


@dataclass(frozen=True, slots=True)
class Mode:
    """One operating mode.

    Attributes:
        kind: sends its cache (`cache`), positions only (`scout`), the text (`prompt`) or nothing (`local`).
        selection: of the context positions (`cache` and `scout`), one of SELECTION_NAMES; None for all positions.
        retention: the share of context positions kept, in (0, 1]; 1 where there is no selection.
        quantizer: of `cache`, else None. Models know QUANTIZER_NAMES; any other is a name of a profile's own.
        text: the mode as it is written everywhere outside the program.
    """

    kind: Kind
    selection: str | None = None
    retention: float = 1.0
    quantizer: str | None = None
    text: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self._written())

    # By text, whose hash is computed once: modes are keys on hot paths.
    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mode) and self.text == other.text

    def __str__(self) -> str:
        return self.text

    @property
    def is_cache(self) -> bool:
        """Sends a cache, for the edge's own model to go on from in the cloud."""
        return self.kind == "cache"

    @property
    def is_local(self) -> bool:
        """Sends nothing."""
        return self.kind == "local"

    @property
    def is_question(self) -> bool:
        """Sends a question to the cloud's own model: small, so that it may go ahead of a cache as a hedge."""
        return self.kind in ("prompt", "scout")

    @property
    def needs_context(self) -> bool:
        """Sends positions, which mean nothing without the context: the cloud must have it, or it is sent as well."""
        return self.kind == "scout"

    def check_runnable(self) -> None:
        """Raises ValueError if no model can run this mode: the name is a profile's own."""
        if self.is_cache and self.quantizer not in QUANTIZER_NAMES:
            raise ValueError(f"no model knows mode {self.text!r}; they know {_GRAMMAR}")

    def _written(self) -> str:
        if self.kind != "cache":
            scouts = self.kind == "scout" and self.retention != SCOUT_RETENTION
            return f"{self.kind}@{self.retention!r}" if scouts else self.kind
        if self.selection is None:
            return "full" if self.quantizer == UNQUANTIZED else str(self.quantizer)
        quantizer = "" if self.quantizer == UNQUANTIZED else f"+{self.quantizer}"
        return f"{self.selection}@{self.retention!r}{quantizer}"


PROMPT = Mode("prompt")
SCOUT = Mode("scout", SCOUT_SELECTION, SCOUT_RETENTION)
LOCAL = Mode("local")

_GRAMMAR = (
    f"full, {', '.join(QUANTIZER_NAMES)}, <selection>@<retention>, <selection>@<retention>+<quantizer>, "
    f"scout, scout@<retention>, prompt, local, with the selections {', '.join(SELECTION_NAMES)}"
)


@lru_cache(maxsize=1024)
def parse_mode(text: str) -> Mode:
    """The mode that is written so; the same object for the same text.

    Raises:
        ValueError: not a mode; the message says what is allowed.
    """
    selection, at, rest = text.partition("@")
    if text in ("prompt", "local"):
        return PROMPT if text == "prompt" else LOCAL
    if selection == "scout":
        return Mode("scout", SCOUT_SELECTION, _retention(rest, text)) if at else SCOUT
    if not at:
        if not OWN_NAME.fullmatch(text):
            raise ValueError(
                f"no mode {text!r}; there are {_GRAMMAR}, or a name of your own "
                "(a letter, then letters, digits, '.', '_' or '-', 64 at most)"
            )
        return Mode("cache", quantizer=UNQUANTIZED if text == "full" else text)
    if selection not in SELECTION_NAMES:
        raise ValueError(f"no selection {selection!r} in mode {text!r}; there are {', '.join(SELECTION_NAMES)}")
    share, plus, quantizer = rest.partition("+")
    if plus and quantizer not in QUANTIZER_NAMES:
        raise ValueError(f"no quantizer {quantizer!r} in mode {text!r}; there are {', '.join(QUANTIZER_NAMES)}")
    return Mode("cache", selection, _retention(share, text), quantizer if plus else UNQUANTIZED)


def parse_modes(text: str) -> list[Mode]:
    """Modes that models run, written with commas between; each once.

    Raises:
        ValueError: one is not a mode, or no model knows it.
    """
    modes = list(dict.fromkeys(map(parse_mode, text.split(","))))
    for mode in modes:
        mode.check_runnable()
    return modes


def _retention(text: str, mode: str) -> float:
    try:
        retention = float(text)
    except ValueError:
        retention = 0.0
    if not 0 < retention <= 1:
        raise ValueError(f"a retention of {text!r} in mode {mode!r}; it is a number above 0 and at most 1")
    return retention
