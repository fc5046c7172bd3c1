"""A channel read from a file: CSV (`t_s,mbps`), or Mahimahi's list of delivery opportunities."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from configs.reading import FileRefused, TableError, has_header, read_lines, shortened, table_rows
from netem.channels.base import MIN_CHANNEL_MBPS, Channel, RateChange
from netem.wire import MAX_SHAPED_MBPS

MAHIMAHI_PACKET_BYTES = 1500
MAX_TRACE_BYTES = 64 * 2**20
MAX_CHANGES = 2_000_000
MAX_GAP_S = 3600.0
MAX_LENGTH_S = 7 * 86_400.0
MAX_DIGITS = 12


class TraceError(ValueError):
    """A trace file can't be read; the message names the file, the line, the offending value and the allowed ones."""


class TraceChannel(Channel):
    """Replays `path`, found relative to the scenario file.

    CSV: a header `t_s,mbps`, then rising times from 0 on; each rate holds until the next time.
    Mahimahi: one line for each 1500-byte delivery opportunity, with its millisecond; averaged over bins of `bin_ms`.
    With `loop`, the trace starts again at its end (for CSV: one last interval after its last time); otherwise the
    last rate holds.
    """

    kind: Literal["trace"] = "trace"
    path: Path = Field(description="the trace file, relative to the scenario file")
    format: Literal["csv", "mahimahi"] | None = Field(
        default=None, description="default: csv for names that end in .csv, else mahimahi"
    )
    bin_ms: int = Field(default=100, ge=1, le=60_000, description="Mahimahi traces are averaged over so long")
    loop: bool = Field(default=True, description="whether the trace starts again at its end")
    _changes: list[RateChange] = PrivateAttr(default_factory=list)
    _length_s: float = PrivateAttr(default=0.0)

    @field_validator("path")
    @classmethod
    def _relative_to_scenario(cls, path: Path, info: ValidationInfo) -> Path:
        base = (info.context or {}).get("base_dir")
        return path if base is None or path.is_absolute() else Path(base) / path

    @model_validator(mode="after")
    def _load(self) -> "TraceChannel":
        kind = self.format or ("csv" if self.path.suffix.lower() == ".csv" else "mahimahi")
        try:
            lines = read_lines(self.path, MAX_TRACE_BYTES)
        except FileNotFoundError as error:
            raise TraceError(f"{self.path}: {error.strerror}") from None
        except FileRefused as error:
            raise TraceError(str(error)) from None
        if kind == "csv":
            self._changes, self._length_s = parse_csv(lines, self.path)
        else:
            self._changes, self._length_s = parse_mahimahi(lines, self.path, self.bin_ms)
        return self

    @property
    def length_s(self) -> float:
        """After which it begins again, with `loop`."""
        return self._length_s

    def changes_within(self, end_s: float) -> float:
        laps = max(1.0, end_s / self._length_s) if self.loop else 1.0
        return laps * len(self._changes)

    def play(self, seed: int) -> Iterator[RateChange]:
        for lap in count() if self.loop else (0,):
            for change in self._changes:
                yield RateChange(lap * self._length_s + change.at_s, change.mbps)


def parse_csv(lines: list[str], path: Path) -> tuple[list[RateChange], float]:
    """Rate changes and the length in seconds of a `t_s,mbps` trace.

    Raises:
        TraceError: with the number of the offending line.
    """
    if not has_header(lines, "t_s", "mbps"):
        raise TraceError(f"{path}:1: the first line must be 't_s,mbps'")
    changes: list[RateChange] = []
    for number, row in _rows(lines, path):
        try:
            at_s, mbps = (float(cell) for cell in row)
        except ValueError:
            raise TraceError(f"{path}:{number}: {shortened(','.join(row))} is not 't_s,mbps' (two numbers)") from None
        if not 0 <= mbps <= MAX_SHAPED_MBPS:
            raise TraceError(f"{path}:{number}: {mbps:g} Mbit/s is outside 0 to {MAX_SHAPED_MBPS:g}")
        if changes and not changes[-1].at_s < at_s:
            raise TraceError(f"{path}:{number}: {at_s:g} s does not come after {changes[-1].at_s:g} s")
        if not changes and at_s != 0:
            raise TraceError(f"{path}:{number}: the first time must be 0, not {at_s:g} s")
        _check_time(at_s, changes[-1].at_s if changes else 0.0, path, number)
        changes.append(RateChange(at_s, max(mbps, MIN_CHANNEL_MBPS)))
        if len(changes) > MAX_CHANGES:
            raise TraceError(f"{path}:{number}: more than {MAX_CHANGES:,} rates")
    if not changes:
        raise TraceError(f"{path}: no rates after the header")
    last_interval = changes[-1].at_s - changes[-2].at_s if len(changes) > 1 else 1.0
    return changes, changes[-1].at_s + last_interval


def parse_mahimahi(lines: list[str], path: Path, bin_ms: int) -> tuple[list[RateChange], float]:
    """Rate changes per `bin_ms` and the length in seconds of a Mahimahi trace (which ends at its last opportunity).

    Raises:
        TraceError: with the number of the offending line.
    """
    last = 0
    packets: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not (text.isascii() and text.isdecimal()) or len(text) > MAX_DIGITS:
            raise TraceError(f"{path}:{number}: {shortened(line)} is not a whole number of milliseconds")
        ms = int(text)
        if ms < last:
            raise TraceError(f"{path}:{number}: {ms} ms comes before {last} ms")
        _check_time(ms / 1000, last / 1000, path, number)
        last = ms
        index = max(ms - 1, 0) // bin_ms  # Mahimahi's milliseconds start at 1: bin k is (k*bin, (k+1)*bin]
        packets[index] = packets.get(index, 0) + 1
        _check_rate(packets[index], bin_ms, path, number)
    if last == 0:
        raise TraceError(f"{path}: a trace needs an opportunity after 0 ms")
    bins = -(-last // bin_ms)
    if bins > MAX_CHANGES:
        raise TraceError(f"{path}:{len(lines)}: {bins:,} bins of {bin_ms} ms; at most {MAX_CHANGES:,}: raise bin_ms")
    changes = []
    for index in range(bins):
        width_ms = min(bin_ms, last - index * bin_ms)
        mbps = _check_rate(packets.get(index, 0), width_ms, path, len(lines))
        changes.append(RateChange(index * bin_ms / 1000, max(mbps, MIN_CHANNEL_MBPS)))
    return changes, last / 1000


def _check_rate(packets: int, width_ms: int, path: Path, number: int) -> float:
    """The rate in Mbit/s of so many packets in a bin. Raises TraceError if no link can have it."""
    mbps = packets * MAHIMAHI_PACKET_BYTES * 8 / (width_ms * 1000)
    if mbps > MAX_SHAPED_MBPS:
        raise TraceError(
            f"{path}:{number}: {packets} opportunities in {width_ms} ms are {mbps:,.0f} Mbit/s; at most "
            f"{MAX_SHAPED_MBPS:,.0f} (a larger bin_ms averages over more of them)"
        )
    return mbps


def _check_time(at_s: float, before_s: float, path: Path, number: int) -> None:
    """Raises TraceError for times that are no trace's."""
    if at_s - before_s > MAX_GAP_S or at_s > MAX_LENGTH_S:
        raise TraceError(
            f"{path}:{number}: {at_s:g} s, {at_s - before_s:g} s after the time before; times count from the trace's "
            f"start (they are no dates), at most {MAX_GAP_S:g} s apart, and end by {MAX_LENGTH_S:g} s"
        )


def _rows(lines: list[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        yield from table_rows(lines)
    except TableError as error:
        raise TraceError(f"{path}:{error.number}: {error.reason}") from None
