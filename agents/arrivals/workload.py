"""Requests of a recorded workload: when they came, and how long their contexts and answers were."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, PrivateAttr, ValidationInfo, model_validator

from agents.arrivals.base import MAX_REQUESTS, MAX_TURN_S, Arrival, ArrivalProcess, ArrivalTraceError
from configs.reading import FileRefused, check_file, shortened, stream_lines
from configs.settings import Settings
from models.lengths import MAX_TOKENS, Lengths

MAX_WORKLOAD_BYTES = 2**30
Format = Literal["auto", "azure", "burstgpt", "mooncake", "table"]
TOKENS_ALLOWED = f"a whole number from 0 to {MAX_TOKENS:,}"


class WorkloadRequest(NamedTuple):
    """One request as a file has it.

    Attributes:
        line: of the file, from 1 on; of a Parquet file, the row.
        at_s: seconds, from any origin.
        session: requests of one session have an equal one; None where the file doesn't tell.
        blocks: ids of the blocks of the context's prefix; an equal id is an equal block.
    """

    line: int
    at_s: float
    context_tokens: int
    output_tokens: int
    session: str | None = None
    blocks: tuple[int, ...] = ()


class Columns(Settings):
    """Names of the columns of a plain table."""

    t_s: str = Field(default="t_s", description="seconds, or a date and time")
    context_tokens: str = Field(default="context_tokens", description="tokens of the context")
    output_tokens: str = Field(default="output_tokens", description="tokens of the answer")
    session: str = Field(default="session", description="optional in the file")


class _Bad(ValueError):
    """A line can't be used: why, by column; and its number, where the reader of its cells can't know it."""

    def __init__(self, why: str, line: int | None = None) -> None:
        super().__init__(why)
        self.line = line


class WorkloadFile(ArrivalProcess):
    """Requests of a file with their lengths: Azure's, BurstGPT's, Mooncake's, or a table (CSV, JSON lines, Parquet).

    Requests without a context or without an answer are left out. Times count from the window's start.
    """

    kind: Literal["workload"] = "workload"
    path: Path = Field(description="the file, relative to the scenario file")
    format: Format = Field(default="auto", description="default: told by the file's first line")
    columns: Columns = Field(default=Columns(), description="of a plain table")
    start_s: float = Field(default=0.0, ge=0, le=1e9, description="of the window, after the file's first request")
    duration_s: float | None = Field(default=None, gt=0, le=1e9, description="of the window; default: to the end")
    every: int = Field(default=1, ge=1, le=1_000_000, description="thinning: each so many-th request of the window")
    speed: float = Field(default=1.0, gt=0, le=1e6, description="how many times as fast requests follow one another")
    spread: Literal["round_robin", "session"] = Field(
        default="round_robin", description="over agents; session: one agent for all requests of a session"
    )
    lengths: Literal["file", "profile"] = Field(
        default="file", description="profile: all requests have the lengths of their agent's profile"
    )
    _requests: list[WorkloadRequest] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _load(self, info: ValidationInfo) -> "WorkloadFile":
        path = Path((info.context or {}).get("base_dir", ".")) / self.path
        self._requests = list(self._window(path))
        if not self._requests:
            raise ArrivalTraceError(f"{path}: no request in the window; choose another start_s, duration_s or every")
        return self

    @property
    def sized(self) -> bool:
        return self.lengths == "file"

    @property
    def requests(self) -> list[WorkloadRequest]:
        """Those of the window, after thinning; `at_s` as the schedule has it."""
        return self._requests

    def extent(self, agents: int) -> tuple[float, float]:
        return float(len(self._requests)), self._requests[-1].at_s

    def schedule(self, agents: int, rng: np.random.Generator) -> list[Arrival]:
        seats: dict[str | None, int] = {}
        arrivals = []
        for number, request in enumerate(self._requests):
            agent = number % agents
            if self.spread == "session" and request.session is not None:
                agent = seats.setdefault(request.session, len(seats) % agents)
            lengths = Lengths(request.context_tokens, request.output_tokens) if self.sized else None
            arrivals.append(Arrival(number, agent, request.at_s, -1, lengths))
        return arrivals

    def _window(self, path: Path) -> Iterator[WorkloadRequest]:
        """The requests of the window at the schedule's times. Raises ArrivalTraceError."""
        first_s, last_s, seen, kept = None, -math.inf, 0, 0
        for request in read_workload(path, self.format, self.columns):
            first_s = request.at_s if first_s is None else first_s
            if request.at_s < last_s:
                raise ArrivalTraceError(f"{path}:{request.line}: earlier than the request before it; sort by time")
            last_s = request.at_s
            after_s = request.at_s - first_s - self.start_s
            if self.duration_s is not None and after_s >= self.duration_s:
                return
            if after_s < 0 or not request.context_tokens or not request.output_tokens:
                continue
            seen += 1
            if (seen - 1) % self.every:
                continue
            kept += 1
            if kept > MAX_REQUESTS:
                raise ArrivalTraceError(
                    f"{path}:{request.line}: more than {MAX_REQUESTS:,} requests; choose a window or thin them"
                )
            at_s = after_s / self.speed
            if at_s > MAX_TURN_S:
                raise ArrivalTraceError(
                    f"{path}:{request.line}: {at_s:g} s after the window's start; the longest turn has {MAX_TURN_S:g}"
                )
            yield request._replace(at_s=at_s)


def read_workload(path: Path, format: Format = "auto", columns: Columns | None = None) -> Iterator[WorkloadRequest]:
    """Every request of a workload file, in its order.

    Raises:
        ArrivalTraceError: it can't be read; names file, line and column, and what is allowed there.
    """
    columns = columns or Columns()
    try:
        if path.suffix.lower() == ".parquet":
            yield from _read_parquet(path, columns)
        else:
            yield from _read_lines(path, format, columns)
    except FileNotFoundError as error:
        raise ArrivalTraceError(f"{path}: {error.strerror}") from None
    except FileRefused as error:
        raise ArrivalTraceError(str(error)) from None


def _read_lines(path: Path, format: Format, columns: Columns) -> Iterator[WorkloadRequest]:
    lines = stream_lines(path, MAX_WORKLOAD_BYTES)
    first = next(lines, None)
    if first is None or not first.strip():
        raise ArrivalTraceError(f"{path}:1: no first line; a header of column names or a JSON object is needed")
    rows = _json_rows(first, lines) if first.lstrip().startswith("{") else _csv_rows(first, lines)
    read: Callable[[Mapping[str, Any]], tuple[Any, ...]] | None = None
    number = 0
    try:
        for number, row in rows:
            if read is None:
                read = READERS[_format_of(format, row)](columns)
            yield WorkloadRequest(number, *read(row))
    except _Bad as error:
        raise ArrivalTraceError(f"{path}:{error.line or number}: {error}") from None
    if read is None:
        raise ArrivalTraceError(f"{path}: no requests after the first line")


def _csv_rows(first: str, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(lines)
    try:
        names = [name.strip() for name in next(csv.reader([first]))]
        for cells in reader:
            if cells and len(cells) != len(names):
                raise _Bad(f"{len(cells)} cells where the header has {len(names)}", reader.line_num + 1)
            if cells:
                yield reader.line_num + 1, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise _Bad(str(error), reader.line_num + 1) from None


def _json_rows(first: str, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(chain([first], lines), 1):
        if line.strip():
            yield number, _object(line, number)


def _object(line: str, number: int) -> dict[str, Any]:
    try:
        found = json.loads(line, parse_constant=lambda name: name)
    except json.JSONDecodeError as error:
        raise _Bad(f"not JSON: {error.msg}: column {error.colno}", number) from None
    except (ValueError, RecursionError):
        raise _Bad("not JSON that can be read: a number of too many digits, or nested too deeply", number) from None
    if not isinstance(found, dict):
        raise _Bad(f"{shortened(line)} is not a JSON object", number)
    return found


def _read_parquet(path: Path, columns: Columns) -> Iterator[WorkloadRequest]:
    import pyarrow
    from pyarrow import parquet

    check_file(path, MAX_WORKLOAD_BYTES)
    try:
        file = parquet.ParquetFile(path)
        present = set(file.schema_arrow.names)
        wanted = [name for name in columns.model_dump().values() if name in present]
        read = _table(columns)
        number = 0
        for batch in file.iter_batches(batch_size=10_000, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                try:
                    yield WorkloadRequest(number, *read(row))
                except _Bad as error:
                    raise ArrivalTraceError(f"{path}: row {number}: {error}") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise ArrivalTraceError(f"{path}: not a Parquet file that can be read: {shortened(str(error))}") from None


def _format_of(format: Format, names: Iterable[str]) -> str:
    if format != "auto":
        return format
    for name, needed in MARKS.items():
        if needed <= set(names):
            return name
    return "table"


def _azure(columns: Columns) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    names = "TIMESTAMP", "ContextTokens", "GeneratedTokens"
    return lambda row: (_time(row, names[0]), _tokens(row, names[1]), _tokens(row, names[2]))


def _burstgpt(columns: Columns) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    session = "Session ID"

    def read(row: Mapping[str, Any]) -> tuple[Any, ...]:
        lengths = _tokens(row, "Request tokens"), _tokens(row, "Response tokens")
        return (_time(row, "Timestamp"), *lengths, str(row[session]) if row.get(session) else None)

    return read


def _mooncake(columns: Columns) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    def read(row: Mapping[str, Any]) -> tuple[Any, ...]:
        blocks = row.get("hash_ids", [])
        if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
            raise _Bad("hash_ids: not a list of whole numbers")
        lengths = _tokens(row, "input_length"), _tokens(row, "output_length")
        return (_time(row, "timestamp") / 1e3, *lengths, None, tuple(blocks))

    return read


def _table(columns: Columns) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    def read(row: Mapping[str, Any]) -> tuple[Any, ...]:
        lengths = _tokens(row, columns.context_tokens), _tokens(row, columns.output_tokens)
        session = row.get(columns.session)
        return (_time(row, columns.t_s), *lengths, None if session in (None, "") else str(session))

    return read


READERS = {"azure": _azure, "burstgpt": _burstgpt, "mooncake": _mooncake, "table": _table}
MARKS = {
    "azure": {"TIMESTAMP", "ContextTokens", "GeneratedTokens"},
    "burstgpt": {"Timestamp", "Request tokens", "Response tokens"},
    "mooncake": {"timestamp", "input_length", "output_length"},
}


def _cell(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise _Bad(f"no column {name!r}; there are {shortened(', '.join(map(str, row)))}")
    return row[name]


def _tokens(row: Mapping[str, Any], name: str) -> int:
    value = _cell(row, name)
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= MAX_TOKENS or number != int(number):
        raise _Bad(f"{name}: {shortened(str(value))} is not {TOKENS_ALLOWED}")
    return int(number)


def _time(row: Mapping[str, Any], name: str) -> float:
    value = _cell(row, name)
    try:
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except ValueError:
                return _date(str(value))
            if math.isfinite(number):
                return number
    except (ValueError, OverflowError):
        pass
    raise _Bad(f"{name}: {shortened(str(value))} is neither a finite number nor a date and time as in ISO 8601")


def _date(text: str) -> float:
    """Seconds of a date and time; digits beyond microseconds are kept. Raises ValueError."""
    moment = datetime.fromisoformat(text.strip()).replace(microsecond=0)
    fraction = re.search(r"\.(\d+)", text)
    seconds_s = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return seconds_s + (float(f"0.{fraction[1]}") if fraction else 0.0)
