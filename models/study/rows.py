"""Outcomes of a study, one for each example and case, and the folder that they are kept in: append-only shards."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_type_hints

import pyarrow as pa
from pyarrow import parquet

SHARDS = "shards"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One example in one case.

    Attributes:
        example: its name; context: the number of its context among those of its length; other examples may share it.
        length: the length of generated contexts that was asked for, in tokens; 0 for given ones.
        case, side, selection, retention, quantizer, way: see `models.study.cases.Case`.
        answer: the text; references: by a line's end.
        f1, exact: in [0, 1], as the task scores.
        nll: of the first reference, in nats a token, given this cache; nll_tokens: its length.
        answer_tokens: decoded tokens; stopped: whether the model ended the answer.
        context_tokens, kept: tokens of the context, and how many of them are kept; kept_positions: which (none if all).
        payload_bytes: that the mode sends; -1 where nothing is sent (`own`).
        overlap, beyond_chance: of the edge's positions with the cloud's own: the share, and (share - expected) /
            (1 - expected); -1 where that doesn't apply.
        answer_kept: the share of the reference's tokens in the context that are kept, of its best occurrence; -1 where
            it isn't there.
    """

    example: str
    context: int
    length: int
    case: str
    side: str
    selection: str
    retention: float
    quantizer: str
    way: str
    answer: str
    references: str
    f1: float
    exact: float
    nll: float
    nll_tokens: int
    answer_tokens: int
    stopped: bool
    context_tokens: int
    kept: int
    payload_bytes: int
    overlap: float
    beyond_chance: float
    answer_kept: float
    kept_positions: list[int]


_TYPES = {str: pa.string(), int: pa.int32(), float: pa.float64(), bool: pa.bool_(), list[int]: pa.list_(pa.int32())}
SCHEMA = pa.schema([pa.field(name, _TYPES[kind]) for name, kind in get_type_hints(Outcome).items()])


class Store:
    """The outcomes of a study folder. One process writes; a shard is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError if the folder can't be made."""
        self.folder = folder
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
        self._next = 1 + max((int(path.stem) for path in self._shards()), default=-1)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Keep outcomes for good."""
        rows = [asdict(outcome) for outcome in outcomes]
        if not rows:
            return
        path = self.folder / SHARDS / f"{self._next:06d}.parquet"
        beside = path.with_suffix(".tmp")
        parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), beside, compression="zstd")
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
        self._next += 1

    def done(self) -> set[tuple[str, str]]:
        """Example and case of every outcome."""
        found: set[tuple[str, str]] = set()
        for path in self._shards():
            table = parquet.read_table(path, columns=["example", "case"])
            found.update(zip(table["example"].to_pylist(), table["case"].to_pylist(), strict=True))
        return found

    def table(self) -> pa.Table:
        """All outcomes; of two of the same example and case, the first."""
        tables = [parquet.read_table(path, schema=SCHEMA) for path in self._shards()]
        found = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
        first: dict[tuple[str, str], int] = {}
        for row, key in enumerate(zip(found["example"].to_pylist(), found["case"].to_pylist(), strict=True)):
            first.setdefault(key, row)
        return found if len(first) == len(found) else found.take(list(first.values()))

    def finish(self, path: Path) -> None:
        """Write all outcomes as one file."""
        beside = path.with_suffix(".tmp")
        parquet.write_table(self.table(), beside, compression="zstd")
        beside.replace(path)

    def _shards(self) -> Iterator[Path]:
        yield from sorted(p for p in (self.folder / SHARDS).glob("*.parquet") if p.stem.isdecimal())
