"""Every policy keeps the contract; the published ones give the published shares."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocator.modes import adaptive_mode
from allocator.policies import POLICIES, make_policy
from allocator.problem import AgentInfo, ModeOption, Problem, Request

options = st.lists(
    st.builds(
        ModeOption,
        mode=st.sampled_from(["full", "int8", "int4", "prompt"]),
        wire_bytes=st.integers(100, 50_000_000),
        edge_ms=st.floats(0, 100),
        cloud_ms=st.floats(0, 1000),
        quality=st.floats(0, 120),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda o: o.mode,
).map(tuple)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    sizes = draw(st.lists(st.integers(1, 10**9), min_size=1, max_size=12))
    agents = tuple(AgentInfo(i, size) for i, size in enumerate(sizes))
    asking = draw(st.sets(st.sampled_from(range(len(agents)))))
    requests = tuple(Request(100 + i, i, draw(st.floats(-100, 10_000)), draw(options)) for i in asking)
    return Problem(draw(st.floats(0.1, 1000)), agents, requests)


@pytest.mark.parametrize("name", POLICIES)
@given(problem=problems())
def test_contract(name: str, problem: Problem) -> None:
    solution = make_policy(name).solve(problem)
    assert sum(solution.grants_mbps.values()) <= problem.uplink_mbps * (1 + 1e-9)
    assert all(grant > 0 for grant in solution.grants_mbps.values())
    assert set(solution.assignments) == {request.request_id for request in problem.requests}
    for request in problem.requests:
        assignment = solution.assignments[request.request_id]
        option = next(o for o in request.options if o.mode == assignment.mode)
        assert assignment.grant_mbps == solution.grants_mbps[request.agent_id]
        assert assignment.predicted_ms == option.latency_ms(assignment.grant_mbps)
    assert make_policy(name).solve(problem) == solution, "a policy is a function of its problem"


def test_shares_as_published() -> None:
    agents = (AgentInfo(0, 10), AgentInfo(1, 30))
    assert make_policy("equal").solve(Problem(100, agents, ())).grants_mbps == {0: 50, 1: 50}
    assert make_policy("model_aware").solve(Problem(100, agents, ())).grants_mbps == {0: 25, 1: 75}


FULL = ModeOption("full", 1_000_000, 0, 100, 100)  # 8 s at 1 Mbit/s
INT8 = ModeOption("int8", 500_000, 3, 100, 99)
MIXED = ModeOption("mixed_int4", 300_000, 3, 100, 107)
INT4 = ModeOption("int4", 250_000, 3, 100, 96)
LOCAL = ModeOption("local", 0, 170, 0, 75)


@pytest.mark.parametrize(
    ("mbps", "time_left_ms", "expected"),
    [
        (10, 10_000, MIXED),  # the best quality, though full fits too
        (1, 2_400, INT4),  # 2.4 s of mixed and its compute don't fit any more
        (1, 1_000, LOCAL),  # only the edge is in time
        (1, 100, INT4),  # nothing fits: the one that sends least
        (1, -5, INT4),
    ],
)
def test_adaptive_choice(mbps: float, time_left_ms: float, expected: ModeOption) -> None:
    assert adaptive_mode([FULL, INT8, MIXED, INT4, LOCAL], mbps, time_left_ms) == expected


@given(options, st.floats(0.1, 1000), st.floats(0, 20_000))
def test_adaptive_never_misses_what_some_mode_meets(
    offered: tuple[ModeOption, ...], mbps: float, time_left_ms: float
) -> None:
    chosen = adaptive_mode(offered, mbps, time_left_ms)
    fitting = [o for o in offered if o.latency_ms(mbps) <= time_left_ms]
    if fitting:
        assert chosen in fitting and chosen.quality == max(o.quality for o in fitting)
    else:
        assert chosen.wire_bytes == min(o.wire_bytes for o in offered)


def test_static_is_static_and_says_what_it_lacks() -> None:
    agents = (AgentInfo(0, 1),)
    policy = make_policy("static_int8")
    solution = policy.solve(Problem(1, agents, (Request(5, 0, 10, (FULL, INT8)),)))
    assert solution.assignments[5].mode == "int8"
    with pytest.raises(ValueError, match="no mode 'int8', only full"):
        policy.solve(Problem(1, agents, (Request(5, 0, 10, (FULL,)),)))


@pytest.mark.parametrize("name", ["nonsense", "static_", ""])
def test_unknown_policies_say_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match=r"there are .*equal.*static_<mode>"):
        make_policy(name)
