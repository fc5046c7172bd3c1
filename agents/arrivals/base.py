"""What every arrival process is. Open loop: an arrival never waits for an earlier answer."""

from typing import NamedTuple

import numpy as np

from configs.settings import Settings
from models.lengths import Lengths

MAX_REQUESTS = 1_000_000  # of a turn
MAX_TURN_S = 7 * 86_400.0


class ArrivalTraceError(ValueError):
    """An arrival trace or a workload can't be read; the message names file, line, bad value and what is allowed."""


class Arrival(NamedTuple):
    """A request due for release `intended_s` seconds after the run's start.

    Attributes:
        round: -1 unless synchronized.
        lengths: of the request; None for those of its agent's profile.
    """

    request_id: int
    agent_id: int
    intended_s: float
    round: int
    lengths: Lengths | None = None


class ArrivalProcess(Settings):
    """Base of arrival processes. Equal settings, agents and generator state give equal arrivals."""

    def extent(self, agents: int) -> tuple[float, float]:
        """(expected number of requests, latest time in s that one may be released at), without drawing any."""
        raise NotImplementedError

    def times(self, agents: int, rng: np.random.Generator) -> list[tuple[float, int, int]]:
        """(seconds, agent id, round) of every request, in any order."""
        raise NotImplementedError

    @property
    def sized(self) -> bool:
        """Whether requests have lengths of their own."""
        return False

    def schedule(self, agents: int, rng: np.random.Generator) -> list[Arrival]:
        """All arrivals in order of time, numbered from 0."""
        ordered = sorted(self.times(agents, rng))
        return [Arrival(number, agent, at_s, round_) for number, (at_s, agent, round_) in enumerate(ordered)]
