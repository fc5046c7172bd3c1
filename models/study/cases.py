"""Cases: what is done to a cache before the answer. Imports nothing heavy.

Written as modes are where a mode does the same (`full`, `int8`, `q2c@0.5+int8`); a way of its own is appended
(`q2c@0.5/delete`), and what the cloud's model does is preceded by whose positions it keeps (`scout:q2c@0.5` the edge's,
`own:q2c@0.5` its own); `prompt` is the cloud's model on the whole prompt.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from kvcache.modes import MIXED, QUANTIZER_NAMES, SELECTION_NAMES, UNQUANTIZED

Way = Literal["prune", "prefill_kept", "delete"]
WAYS: tuple[Way, ...] = get_args(Way)
Side = Literal["edge", "cloud"]
FULL, PROMPT = "full", "prompt"


@dataclass(frozen=True, slots=True)
class Case:
    """One way from a prompt to an answer.

    Attributes:
        side: whose model answers.
        selection: of the context's positions, with its `retention` in (0, 1]; None for all.
        quantizer: of the cache, before it is decoded from.
        way: prune the whole prompt's cache; prefill the kept tokens alone, at their positions; or prefill them as if
            the others had been deleted (the published evaluation).
        scout: whether the positions are the edge's, for the cloud's model.
    """

    side: Side = "edge"
    selection: str | None = None
    retention: float = 1.0
    quantizer: str = UNQUANTIZED
    way: Way = "prune"
    scout: bool = False

    @property
    def name(self) -> str:
        if self.selection is None:
            whole = FULL if self.side == "edge" else PROMPT
            return whole if self.quantizer == UNQUANTIZED else self.quantizer
        owner = "" if self.side == "edge" else "scout:" if self.scout else "own:"
        quantizer = "" if self.quantizer == UNQUANTIZED else f"+{self.quantizer}"
        way = "" if self.way == "prune" else f"/{self.way}"
        return f"{owner}{self.selection}@{self.retention:g}{quantizer}{way}"


def cases_of(
    selections: Sequence[str],
    retentions: Sequence[float],
    quantizers: Sequence[str],
    ways: Sequence[Way] = ("prune",),
    cloud: bool = False,
    joint: Sequence[tuple[str, float, str]] = (),
) -> list[Case]:
    """The whole cache, each quantizer, each selection at each retention in each way; each of these once.

    Args:
        cloud: whether a second model is asked: with its whole prompt, pruned by the edge's positions and by its own.
        joint: selections with retention and quantizer.

    Raises:
        ValueError: an unknown name, or a retention outside (0, 1].
    """
    _check("selection", selections, SELECTION_NAMES)
    _check("quantizer", quantizers, QUANTIZER_NAMES)
    _check("way", ways, WAYS)
    for retention in (*retentions, *(r for _, r, _ in joint)):
        if not 0 < retention <= 1:
            raise ValueError(f"a retention of {retention:g}; it is above 0 and at most 1")
    found = [Case(), *(Case(quantizer=quantizer) for quantizer in quantizers)]
    kept = [(name, retention) for name in selections for retention in retentions]
    found += [Case("edge", name, retention, way=way) for way in ways for name, retention in kept]
    found += [Case("edge", name, retention, quantizer) for name, retention, quantizer in joint]
    if cloud:
        found.append(Case("cloud"))
        found += [Case("cloud", name, share, scout=scout) for name, share in kept for scout in (True, False)]
    return list(dict.fromkeys(found))


def needs_plan(cases: Iterable[Case]) -> bool:
    return any(case.quantizer == MIXED for case in cases)


def _check(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"no {what} {name!r}; there are {', '.join(known)}")
