"""A channel that follows a list of times and rates in the scenario."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator

from netem.channels.base import MIN_CHANNEL_MBPS, Channel, RateChange
from netem.wire import MAX_RATE_MBPS

Rate = Annotated[float, Field(ge=MIN_CHANNEL_MBPS, le=MAX_RATE_MBPS)]
Seconds = Annotated[float, Field(ge=0)]


class StepsChannel(Channel):
    """`steps: [[0, 50], [10, 5], [20, 50]]`: seconds from the start and Mbit/s; the last rate holds."""

    kind: Literal["steps"] = "steps"
    steps: list[tuple[Seconds, Rate]] = Field(min_length=1, description="`[seconds, Mbit/s]`, by rising time from 0 on")

    @field_validator("steps")
    @classmethod
    def _ordered(cls, steps: list[tuple[float, float]]) -> list[tuple[float, float]]:
        if steps[0][0] != 0:
            raise ValueError(f"the first step must be at 0 s, not {steps[0][0]:g} s")
        for (a, _), (b, _) in pairwise(steps):
            if b <= a:
                raise ValueError(f"times must rise: {b:g} s follows {a:g} s")
        return steps

    def changes_within(self, end_s: float) -> float:
        return sum(at_s < end_s for at_s, _ in self.steps)

    def play(self, seed: int) -> Iterator[RateChange]:
        for at_s, mbps in self.steps:
            yield RateChange(at_s, mbps)
