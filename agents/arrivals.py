"""Arrival processes. Open loop: an arrival never waits for an earlier answer."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
from pydantic import Field, PrivateAttr, ValidationInfo, model_validator

from configs.reading import FileRefused, TableError, has_header, read_lines, shortened, table_rows
from configs.settings import Settings

MAX_TRACE_BYTES = 64 * 2**20
MAX_REQUESTS = 1_000_000  # of a turn
MAX_TURN_S = 7 * 86_400.0


class Arrival(NamedTuple):
    """A request due for release `intended_s` seconds after the run's start; `round` is -1 unless synchronized."""

    request_id: int
    agent_id: int
    intended_s: float
    round: int


class ArrivalProcess(Settings):
    """Base of arrival processes. Equal settings, agents and generator state give equal arrivals."""

    def extent(self, agents: int) -> tuple[float, float]:
        """(expected number of requests, latest time in s that one may be released at), without drawing any."""
        raise NotImplementedError

    def times(self, agents: int, rng: np.random.Generator) -> list[tuple[float, int, int]]:
        """(seconds, agent id, round) of every request, in any order."""
        raise NotImplementedError

    def schedule(self, agents: int, rng: np.random.Generator) -> list[Arrival]:
        """All arrivals in order of time, numbered from 0."""
        ordered = sorted(self.times(agents, rng))
        return [Arrival(number, agent, at_s, round_) for number, (at_s, agent, round_) in enumerate(ordered)]


class Synchronized(ArrivalProcess):
    """All agents release a request at once, `rounds` times, `period_s` apart (the papers' protocol)."""

    kind: Literal["synchronized"] = "synchronized"
    rounds: int = Field(ge=1, le=1_000_000, description="requests of every agent")
    period_s: float = Field(gt=0, description="from one round to the next")

    def extent(self, agents: int) -> tuple[float, float]:
        return float(self.rounds) * agents, (self.rounds - 1) * self.period_s

    def times(self, agents: int, rng: np.random.Generator) -> list[tuple[float, int, int]]:
        return [(round_ * self.period_s, agent, round_) for round_ in range(self.rounds) for agent in range(agents)]


class Poisson(ArrivalProcess):
    """An independent Poisson process for each agent: `rate_per_s` requests a second, for `duration_s`."""

    kind: Literal["poisson"] = "poisson"
    rate_per_s: float = Field(gt=0, le=10_000, description="per agent")
    duration_s: float = Field(gt=0, le=1e6, description="requests are released for so long")

    def extent(self, agents: int) -> tuple[float, float]:
        return self.rate_per_s * self.duration_s * agents, self.duration_s

    def times(self, agents: int, rng: np.random.Generator) -> list[tuple[float, int, int]]:
        arrivals = []
        for agent in range(agents):
            # Conditioned on their number, the arrivals of a Poisson process are uniform.
            number = rng.poisson(self.rate_per_s * self.duration_s)
            arrivals += [(float(at_s), agent, -1) for at_s in rng.uniform(0, self.duration_s, number)]
        return arrivals


class Bursts(ArrivalProcess):
    """Bursts at Poisson times, each of `size` different agents on average (geometric), spread over `spread_s`."""

    kind: Literal["bursts"] = "bursts"
    rate_per_s: float = Field(gt=0, le=10_000, description="bursts, of all agents together")
    size: float = Field(ge=1, le=100_000, description="mean requests in a burst; never more than agents")
    spread_s: float = Field(default=0.1, ge=0, le=3600, description="a burst's length at most")
    duration_s: float = Field(gt=0, le=1e6, description="requests are released for so long")

    def extent(self, agents: int) -> tuple[float, float]:
        bursts = self.rate_per_s * self.duration_s
        return bursts * min(self.size, agents), self.duration_s + self.spread_s

    def times(self, agents: int, rng: np.random.Generator) -> list[tuple[float, int, int]]:
        arrivals = []
        for begins_s in rng.uniform(0, self.duration_s, rng.poisson(self.rate_per_s * self.duration_s)):
            members = rng.choice(agents, min(agents, int(rng.geometric(1 / self.size))), replace=False)
            arrivals += [(float(begins_s + rng.uniform(0, self.spread_s)), int(agent), -1) for agent in members]
        return arrivals


class ArrivalTraceError(ValueError):
    """An arrival trace can't be read; the message names the file, the line, the bad value and the allowed ones."""


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


AnyArrivals = Annotated[Synchronized | Poisson | Bursts | TraceArrivals, Field(discriminator="kind")]
ARRIVALS: dict[str, type[ArrivalProcess]] = {
    process.model_fields["kind"].default: process for process in get_args(get_args(AnyArrivals)[0])
}
