"""Arrival processes by formula: synchronized rounds, Poisson, bursts."""

from typing import Literal

import numpy as np
from pydantic import Field

from agents.arrivals.base import ArrivalProcess


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
