"""What every channel is: a settings object that plays a piecewise-constant rate."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

# The kernel's shapers know no rate of zero: a total outage is played as this rate (a frame every 1.2 s).
MIN_RATE_MBPS = 0.01


class RateChange(NamedTuple):
    """From `at_s` seconds after the run's start on, the uplink carries `mbps` Mbit/s (link layer, decimal)."""

    at_s: float
    mbps: float


class Channel(BaseModel):
    """Base of all channels. Equal settings and an equal seed play equal rates."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def play(self, seed: int) -> Iterator[RateChange]:
        """Yield rate changes in order of time; the first is at 0 s.

        The sequence is endless, or its last rate holds for ever.
        """
        raise NotImplementedError

    def until(self, seed: int, end_s: float) -> list[RateChange]:
        """All changes before `end_s` (at least the first one), equal successive rates merged."""
        changes: list[RateChange] = []
        for change in self.play(seed):
            if changes and change.at_s >= end_s:
                break
            if not changes or change.mbps != changes[-1].mbps:
                changes.append(change)
        return changes


def mean_rate_mbps(changes: list[RateChange], end_s: float) -> float:
    """Time average of a piecewise-constant rate over [0, end_s]."""
    ends = [*changes, RateChange(end_s, 0.0)]
    return sum((b.at_s - a.at_s) * a.mbps for a, b in pairwise(ends)) / end_s
