"""A channel read from a file: CSV (`t_s,mbps`), or Mahimahi's list of delivery opportunities."""

import csv
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from netem.channels.base import MIN_CHANNEL_MBPS, Channel, RateChange
from netem.wire import MAX_RATE_MBPS

MAHIMAHI_PACKET_BYTES = 1500
MAX_TRACE_BYTES = 64 * 2**20


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
        kind = self.format or ("csv" if self.path.suffix == ".csv" else "mahimahi")
        lines = read_lines(self.path)
        if kind == "csv":
            self._changes, self._length_s = parse_csv(lines, self.path)
        else:
            self._changes, self._length_s = parse_mahimahi(lines, self.path, self.bin_ms)
        return self

    def play(self, seed: int) -> Iterator[RateChange]:
        for lap in count() if self.loop else (0,):
            for change in self._changes:
                yield RateChange(lap * self._length_s + change.at_s, change.mbps)


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file of bounded size.

    Raises:
        TraceError: no such file, too large, or not text.
    """
    try:
        if path.stat().st_size > MAX_TRACE_BYTES:
            raise TraceError(f"{path}: larger than {MAX_TRACE_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path}: not a text file") from None


def parse_csv(lines: list[str], path: Path) -> tuple[list[RateChange], float]:
    """Rate changes and the length in seconds of a `t_s,mbps` trace.

    Raises:
        TraceError: with the number of the offending line.
    """
    if not lines or [cell.strip() for cell in lines[0].split(",")] != ["t_s", "mbps"]:
        raise TraceError(f"{path}:1: the first line must be 't_s,mbps'")
    changes: list[RateChange] = []
    for number, row in enumerate(csv.reader(lines[1:]), start=2):
        try:
            at_s, mbps = (float(cell) for cell in row)
        except ValueError:
            raise TraceError(f"{path}:{number}: {','.join(row)!r} is not 't_s,mbps' (two numbers)") from None
        if not 0 <= mbps <= MAX_RATE_MBPS:
            raise TraceError(f"{path}:{number}: {mbps:g} Mbit/s is outside 0 to {MAX_RATE_MBPS:g}")
        if changes and not changes[-1].at_s < at_s < 1e9:
            raise TraceError(f"{path}:{number}: {at_s:g} s does not come after {changes[-1].at_s:g} s")
        if not changes and at_s != 0:
            raise TraceError(f"{path}:{number}: the first time must be 0, not {at_s:g} s")
        changes.append(RateChange(at_s, max(mbps, MIN_CHANNEL_MBPS)))
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
        if not line.strip().isdecimal() or len(line) > 12:
            raise TraceError(f"{path}:{number}: {line[:40]!r} is not a whole number of milliseconds")
        ms = int(line)
        if ms < last:
            raise TraceError(f"{path}:{number}: {ms} ms comes before {last} ms")
        last = ms
        index = max(ms - 1, 0) // bin_ms  # Mahimahi's milliseconds start at 1: bin k is (k*bin, (k+1)*bin]
        packets[index] = packets.get(index, 0) + 1
    if last == 0:
        raise TraceError(f"{path}: a trace needs an opportunity after 0 ms")
    changes = []
    for index in range((last + bin_ms - 1) // bin_ms):
        width_ms = min(bin_ms, last - index * bin_ms)
        mbps = packets.get(index, 0) * MAHIMAHI_PACKET_BYTES * 8 / (width_ms * 1000)
        changes.append(RateChange(index * bin_ms / 1000, max(mbps, MIN_CHANNEL_MBPS)))
    return changes, last / 1000
