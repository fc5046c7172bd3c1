"""The six-state Markov channel of the Scout protocol paper (paper B), bit-identical to its published code."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field

from netem.channels.base import Channel, RateChange

STATES_MBPS = (5.0, 10.0, 25.0, 50.0, 100.0, 200.0)
TRANSITIONS = np.array(
    [
        [0.50, 0.30, 0.10, 0.05, 0.03, 0.02],
        [0.20, 0.40, 0.25, 0.10, 0.03, 0.02],
        [0.05, 0.15, 0.45, 0.25, 0.07, 0.03],
        [0.03, 0.05, 0.15, 0.45, 0.25, 0.07],
        [0.02, 0.03, 0.05, 0.15, 0.45, 0.30],
        [0.02, 0.03, 0.05, 0.10, 0.30, 0.50],
    ]
)
FIRST_STATE = 2


class MarkovChannel(Channel):
    """One step every `step_s` seconds among 5, 10, 25, 50, 100 and 200 Mbit/s.

    As published, the chain starts in the third state and steps *before* its first output, drawing from
    `numpy.random.RandomState(seed)` (the papers use 42), so it reproduces the papers' sequence exactly.
    """

    kind: Literal["markov"] = "markov"
    step_s: float = Field(default=1.0, gt=0, description="the rate may change so often")

    def changes_within(self, end_s: float) -> float:
        return end_s / self.step_s

    def play(self, seed: int) -> Iterator[RateChange]:
        rng = np.random.RandomState(seed)
        state, step = FIRST_STATE, 0
        while True:
            state = int(rng.choice(len(STATES_MBPS), p=TRANSITIONS[state]))
            yield RateChange(step * self.step_s, STATES_MBPS[state])
            step += 1
