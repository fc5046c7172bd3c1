"""Every policy keeps the contract; the published ones give the published shares."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.modes import adaptive_mode
from allocator.policies import POLICIES, make_policy
from allocator.problem import ROUNDING, AgentInfo, ModeOption, Problem, Request, Transfer
from kvcache.modes import PROMPT, SCOUT, parse_mode

KV_MODES = tuple(map(parse_mode, ("full", "int8", "int4")))
quality = st.floats(0, 120)
kv_options = st.lists(
    st.builds(
        ModeOption,
        mode=st.sampled_from(KV_MODES),
        wire_bytes=st.integers(100, 50_000_000),
        edge_ms=st.floats(0, 100),
        cloud_ms=st.floats(0, 1000),
        quality=quality,
    ),
    min_size=1,
    unique_by=lambda o: o.mode,
)
small_options = st.tuples(
    st.builds(ModeOption, st.just(PROMPT), st.integers(100, 5000), st.just(0), st.floats(0, 1000), quality),
    st.builds(ModeOption, st.just(SCOUT), st.integers(100, 1000), st.floats(0, 10), st.floats(0, 1000), quality),
    st.builds(ModeOption, st.just(parse_mode("local")), st.just(0), st.floats(0, 2000), st.just(0), quality),
)
options = st.builds(lambda kv, small: (*kv, *small), kv_options, small_options)
some_options = st.one_of(options, kv_options.map(tuple))
time_left_ms = st.floats(-100, 10_000)
weight = st.sampled_from([1.0, 2.0, 0.5])


@st.composite
def problems(draw: st.DrawFn, offered: st.SearchStrategy[tuple[ModeOption, ...]] = some_options) -> Problem:
    sizes = draw(st.lists(st.integers(1, 10**9), min_size=1, max_size=12))
    agents = tuple(AgentInfo(i, size) for i, size in enumerate(sizes))
    agent_id = st.sampled_from(range(len(agents)))
    requests = tuple(
        Request(100 + i, draw(agent_id), draw(time_left_ms), draw(offered), draw(weight), draw(starts_in_ms))
        for i in range(draw(st.integers(0, 8)))
    )
    transfers = tuple(
        Transfer(200 + i, draw(agent_id), draw(st.floats(0, 1e7)), draw(time_left_ms), draw(weight))
        for i in range(draw(st.integers(0, 4)))
    )
    workers = draw(st.none() | st.lists(st.floats(0, 5000), min_size=1, max_size=3).map(tuple))
    unsaved = draw(st.sampled_from(["local", "late"]))
    return Problem(draw(st.floats(1e-3, 1000)), agents, requests, transfers, workers, unsaved)


starts_in_ms = st.sampled_from([0.0, 0.0, 250.0])
BY_NEED = ["deadline", "greedy", "optimal"]


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60, deadline=None)
@given(problem=problems(options))
def test_contract(name: str, problem: Problem) -> None:
    solution = make_policy(name).solve(problem)
    assert sum(solution.grants_mbps.values()) <= problem.uplink_mbps * (1 + 1e-8)
    assert all(grant >= 0 for grant in solution.grants_mbps.values())
    assert set(solution.assignments) == {request.request_id for request in problem.requests}
    for request in problem.requests:
        assignment = solution.assignments[request.request_id]
        option = next(o for o in request.options if o.mode == assignment.mode)
        assert assignment.predicted_ms >= option.latency_ms(assignment.grant_mbps) * (1 - 1e-9)
        if assignment.meets:
            assert option.latency_ms(assignment.grant_mbps) <= request.time_left_ms * (1 + 2 * ROUNDING)
            assert assignment.predicted_ms <= request.time_left_ms * (1 + 2 * ROUNDING)
    assert make_policy(name).solve(problem) == solution, "a policy is a function of its problem"


@pytest.mark.parametrize("name", BY_NEED)
@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_grants_by_need(name: str, problem: Problem) -> None:
    solution = make_policy(name).solve(problem)
    of_agent: dict[int, float] = {}
    for request in problem.requests:
        assignment = solution.assignments[request.request_id]
        option = next(o for o in request.options if o.mode == assignment.mode)
        if not assignment.meets:
            silent = [o.mode for o in request.options if not o.wire_bytes]
            if problem.unsaved == "local" and silent:
                assert assignment.mode in silent
            else:
                assert option.wire_bytes == min(o.wire_bytes for o in request.options if o.wire_bytes)
        elif problem.workers_free_in_ms is not None and option.cloud_ms:
            free_ms = problem.cloud_free_in_ms + option.cloud_ms
            assert free_ms <= (request.starts_in_ms + request.time_left_ms) * (1 + 2 * ROUNDING)
        if request.starts_in_ms == 0 and option.wire_bytes:
            of_agent[request.agent_id] = of_agent.get(request.agent_id, 0.0) + assignment.grant_mbps
    for agent_id, grant_mbps in of_agent.items():
        assert solution.grants_mbps[agent_id] >= grant_mbps * (1 - 1e-9)
    assert set(solution.grants_mbps) == set(of_agent) | {t.agent_id for t in problem.transfers}
    if solution.grants_mbps:
        assert sum(solution.grants_mbps.values()) == pytest.approx(problem.uplink_mbps), "nothing is left lying about"


def test_shares_as_published() -> None:
    agents = (AgentInfo(0, 10), AgentInfo(1, 30))
    assert make_policy("equal").solve(Problem(100, agents, ())).grants_mbps == {0: 50, 1: 50}
    assert make_policy("model_aware").solve(Problem(100, agents, ())).grants_mbps == {0: 25, 1: 75}


FULL = ModeOption(parse_mode("full"), 1_000_000, 0, 100, 100)  # 8 s at 1 Mbit/s
INT8 = ModeOption(parse_mode("int8"), 500_000, 3, 100, 99)
MIXED = ModeOption(parse_mode("mixed_int4"), 300_000, 3, 100, 107)
INT4 = ModeOption(parse_mode("int4"), 250_000, 3, 100, 96)
LOCAL = ModeOption(parse_mode("local"), 0, 170, 0, 75)


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


@given(kv_options.map(tuple), st.floats(0.1, 1000), st.floats(0, 20_000))
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
    assert solution.assignments[5].mode == INT8.mode
    with pytest.raises(ValueError, match="no mode 'int8', only full"):
        policy.solve(Problem(1, agents, (Request(5, 0, 10, (FULL,)),)))


@pytest.mark.parametrize("name", ["nonsense", "static_", ""])
def test_unknown_policies_say_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match=r"there are .*equal.*static_<mode>"):
        make_policy(name)
