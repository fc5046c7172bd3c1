"""quality_max searches at random as published: one stream, a hundred draws a round, none while a round goes on."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocator.adaptive import adaptive_mode
from allocator.policies.quality_max import DRAWS, QualityMax, delivered_quality
from allocator.problem import AgentInfo, ModeOption, Problem, Request
from tests.support.options import option

OPTIONS = (
    option("full", 3_000_000, 20, 167, 100),
    option("mixed_int4", 800_000, 23, 167, 107.1),
    option("int4", 750_000, 23, 167, 96.2),
)
AGENTS = tuple(AgentInfo(i, 3_000_000) for i in range(4))
NOW_S = 50.0


def asking(*request_ids: int, mbps: float = 20, due_s: float = NOW_S + 2) -> Problem:
    requests = tuple(Request(i, i % len(AGENTS), due_s, OPTIONS) for i in request_ids)
    return Problem(mbps, AGENTS, requests, now_s=NOW_S)


def delivered(problem: Problem, shares: np.ndarray) -> float:
    total = 0.0
    for request in problem.requests:
        mbps = shares[request.agent_id] * problem.uplink_mbps
        chosen = adaptive_mode(request.options, mbps, problem.time_left_ms(request))
        if problem.meets(request, chosen, mbps):
            total += chosen.quality
    return total


def test_it_is_the_best_of_a_hundred_draws_from_one_stream() -> None:
    policy, rng = QualityMax(), np.random.RandomState(42)
    for first in (0, 4, 8):
        problem = asking(*range(first, first + 4))
        draws = [rng.dirichlet(np.ones(4)) for _ in range(DRAWS)]
        best = max(draws, key=lambda shares: delivered(problem, shares))
        grants = policy.solve(problem).grants_mbps
        assert [grants[i] for i in range(4)] == pytest.approx(best * 20, rel=1e-12)


def test_a_round_whose_requests_ask_one_by_one_keeps_its_shares() -> None:
    policy = QualityMax()
    shares = policy.solve(asking(0, 1, 2, 3)).grants_mbps
    for waiting in ((1, 2, 3), (2, 3), (3,), ()):
        assert policy.solve(asking(*waiting)).grants_mbps == shares
    assert policy.solve(asking(4, 5, 6, 7)).grants_mbps != shares


def test_shares_follow_the_uplink_between_draws() -> None:
    policy = QualityMax()
    before = policy.solve(asking(0, 1, mbps=20)).grants_mbps
    after = policy.solve(asking(1, mbps=10)).grants_mbps
    assert after == pytest.approx({agent: mbps / 2 for agent, mbps in before.items()})


def test_nobody_asking_draws_nothing() -> None:
    policy = QualityMax()
    assert policy.solve(asking()).grants_mbps == {0: 5, 1: 5, 2: 5, 3: 5}
    assert policy.solve(asking(0, 1)) == QualityMax().solve(asking(0, 1))


def test_other_seeds_draw_otherwise() -> None:
    assert QualityMax(1).solve(asking(0)) != QualityMax(2).solve(asking(0))
    assert QualityMax(7).solve(asking(0)) == QualityMax(7).solve(asking(0))


def test_what_it_remembers_does_not_grow() -> None:
    policy = QualityMax()
    for i in range(0, 2000, 4):
        policy.solve(asking(i, i + 1, i + 2, i + 3))
    assert len(policy._judged) == 4 and sys.getsizeof(policy._shares) < 1000


def test_weight_counts() -> None:
    """On an uplink for one of two, the heavier one is served."""
    requests = (Request(0, 0, 2, OPTIONS, weight=1), Request(1, 1, 2, OPTIONS, weight=5))
    answer = QualityMax().solve(Problem(4, AGENTS[:2], requests)).choices
    assert answer[1].meets and not answer[0].meets


@given(
    options=st.lists(
        st.builds(
            option,
            mode=st.sampled_from(["full", "int8", "int4"]),
            wire_bytes=st.integers(0, 10_000_000),
            edge_ms=st.floats(0, 100),
            cloud_ms=st.floats(0, 500),
            quality=st.floats(0, 120),
        ),
        min_size=1,
        max_size=5,
    ),
    time_left_ms=st.floats(-10, 5000),
    mbps=st.floats(0.01, 1000),
)
def test_draws_are_judged_as_the_adaptive_choice_would_do(
    options: list[ModeOption], time_left_ms: float, mbps: float
) -> None:
    request = Request(0, 0, time_left_ms / 1e3, tuple(options))
    problem = Problem(mbps, AGENTS[:1], (request,))
    drawn = delivered_quality(request, np.array([mbps]), problem.time_left_ms(request))
    assert drawn[0] == delivered(problem, np.array([1.0]))
