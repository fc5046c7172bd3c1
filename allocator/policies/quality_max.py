"""The best of a hundred random divisions of the uplink, as published."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from allocator.policies.base import SharePolicy
from allocator.problem import ROUNDING, AgentInfo, Problem, Request, Solution

DRAWS = 100


class QualityMax(SharePolicy):
    """Shares from Dirichlet(1, ..., 1) over all agents, the adaptive mode choice on top; the best of 100 draws counts.

    Draws are judged by the weighted quality of those requests that meet their deadline on their share (the papers call
    this greedy; nothing greedy is coded). One `numpy.random.RandomState(seed)` serves all rounds, as published, so the
    answer to a problem depends on how many came before it.

    New shares are drawn when a request asks or is announced that the last draw didn't know: once a round where rounds
    are announced, else once a request. Until the first, shares are equal.
    """

    name = "quality_max"
    static_shares = False

    def __init__(self, seed: int = 42) -> None:
        self._rng = np.random.RandomState(seed)
        self._shares: dict[int, float] = {}
        self._judged: frozenset[int] = frozenset()  # requests of the last draw; what waits on was always among them

    def shares(self, agents: Sequence[AgentInfo]) -> Mapping[int, float]:
        return self._shares

    def draw(self, problem: Problem) -> None:
        """Replace the shares by the best of 100 new draws; the first of equals."""
        drawn = self._rng.dirichlet(np.ones(len(problem.agents)), DRAWS)
        column = {agent.agent_id: i for i, agent in enumerate(problem.agents)}
        delivered = np.zeros(DRAWS)
        for request in problem.requests:
            mbps = drawn[:, column[request.agent_id]] * problem.uplink_mbps
            delivered += delivered_quality(request, mbps, problem.time_left_ms(request))
        best = drawn[delivered.argmax()]
        self._take({agent_id: float(best[i]) for agent_id, i in column.items()})
        self._judged = frozenset(request.request_id for request in problem.requests)

    def solve(self, problem: Problem) -> Solution:
        if any(request.request_id not in self._judged for request in problem.requests):
            self.draw(problem)
        elif self._shares.keys() != {agent.agent_id for agent in problem.agents}:
            self._take({agent.agent_id: 1 / len(problem.agents) for agent in problem.agents})
        return super().solve(problem)

    def _take(self, shares: dict[int, float]) -> None:
        self._shares = shares
        self._solved_for = None  # grants that the base has kept are of other shares


def delivered_quality(request: Request, mbps: NDArray[np.float64], time_left_ms: float) -> NDArray[np.float64]:
    """The weighted quality of a request under the adaptive mode choice on each of these grants; 0 where it is late.

    A mode fits from a grant of `least_mbps` on, and the best that fits is chosen: a rising staircase over the grants.
    """
    time_left_ms *= 1 + ROUNDING
    steps = sorted((option.least_mbps(time_left_ms), option.quality) for option in request.options)
    best = [0.0, *accumulate((quality for _, quality in steps), max)]
    return request.weight * np.array(best)[np.searchsorted([least for least, _ in steps], mbps, side="right")]
