"""Arrivals from a file that says which agent asks when."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, PrivateAttr, ValidationInfo, model_validator

from agents.arrivals.base import MAX_REQUESTS, MAX_TURN_S, ArrivalProcess, ArrivalTraceError
from configs.reading import FileRefused, TableError, has_header, read_lines, shortened, table_rows

MAX_TRACE_BYTES = 64 * 2**20


class TraceArrivals(ArrivalProcess):
    """Arrivals from a CSV file with the header `t_s,agent`, found relative to the scenario file."""

    kind: Literal["trace"] = "trace"
    path: Path = Field(description="a CSV file with the header `t_s,agent`, relative to the scenario file")
    _arrivals: list[tuple[float, int]] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _load(self, info: ValidationInfo) -> "TraceArrivals":
        base = (info.context or {}).get("base_dir", ".")
        self._arrivals = read_arrival_trace(Path(base) / self.path)
        return self

    def extent(self, agents: int) -> tuple[float, float]:
        return float(len(self._arrivals)), max(at_s for at_s, _ in self._arrivals)

    def times(self, agents: int, rng: np.random.Generator) -> list[tuple[float, int, int]]:
        for _, agent in self._arrivals:
            if agent >= agents:
                raise ArrivalTraceError(f"{self.path}: agent {agent}, but the scenario has agents 0 to {agents - 1}")
        return [(at_s, agent, -1) for at_s, agent in self._arrivals]


def read_arrival_trace(path: Path) -> list[tuple[float, int]]:
    """Read (seconds, agent id) from every line of a `t_s,agent` file.

    Raises:
        ArrivalTraceError: with the number of the offending line.
    """
    try:
        lines = read_lines(path, MAX_TRACE_BYTES)
        if not has_header(lines, "t_s", "agent"):
            raise ArrivalTraceError(f"{path}:1: the first line must be 't_s,agent'")
        return _parse(lines, path)
    except FileNotFoundError as error:
        raise ArrivalTraceError(f"{path}: {error.strerror}") from None
    except TableError as error:
        raise ArrivalTraceError(f"{path}:{error.number}: {error.reason}") from None
    except FileRefused as error:
        raise ArrivalTraceError(str(error)) from None


def _parse(lines: list[str], path: Path) -> list[tuple[float, int]]:
    arrivals: list[tuple[float, int]] = []
    for number, row in table_rows(lines):
        try:
            at_s, agent = float(row[0]), int(row[1])
            if len(row) != 2 or not at_s >= 0 or agent < 0:
                raise ValueError
        except (ValueError, IndexError):
            shown = shortened(",".join(row))
            raise ArrivalTraceError(f"{path}:{number}: {shown} is not 't_s,agent' (both 0 or more)") from None
        if at_s > MAX_TURN_S:
            raise ArrivalTraceError(
                f"{path}:{number}: {at_s:g} s is after the longest turn, {MAX_TURN_S:g} s; times count from the turn's "
                "start (they are no dates)"
            )
        if len(arrivals) == MAX_REQUESTS:
            raise ArrivalTraceError(f"{path}:{number}: more than {MAX_REQUESTS:,} requests")
        arrivals.append((at_s, agent))
    if not arrivals:
        raise ArrivalTraceError(f"{path}: no arrivals after the header")
    return arrivals
