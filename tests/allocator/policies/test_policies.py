"""Every policy keeps the contract; the published ones give the published shares."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.adaptive import adaptive_mode
from allocator.policies import POLICIES, make_policy
from allocator.problem import ROUNDING, AgentInfo, ModeOption, Problem, Request, Solution, Transfer
from allocator.sharing import sending_of, shares_of
from tests.support.options import option

KV_MODES = ("full", "int8", "int4")
quality = st.floats(0, 120)
kv_options = st.lists(
    st.builds(
        option,
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
    st.builds(option, st.just("prompt"), st.integers(100, 5000), st.just(0), st.floats(0, 1000), quality),
    st.builds(option, st.just("scout"), st.integers(100, 1000), st.floats(0, 10), st.floats(0, 1000), quality),
    st.builds(option, st.just("local"), st.just(0), st.floats(0, 2000), st.just(0), quality),
)
options = st.builds(lambda kv, small: (*kv, *small), kv_options, small_options)
some_options = st.one_of(options, kv_options.map(tuple))
time_left_s = st.floats(-0.1, 10)
weight = st.sampled_from([1.0, 2.0, 0.5])
starts_in_s = st.sampled_from([0.0, 0.0, 0.25])
NOW_S = 20.0
MINIMUM_RATE = pytest.mark.parametrize("name", ["deadline", "greedy", "optimal"])


@st.composite
def problems(draw: st.DrawFn, offered: st.SearchStrategy[tuple[ModeOption, ...]] = some_options) -> Problem:
    sizes = draw(st.lists(st.integers(1, 10**9), min_size=1, max_size=12))
    agents = tuple(AgentInfo(i, size) for i, size in enumerate(sizes))
    agent_id = st.sampled_from(range(len(agents)))
    requests = []
    for i in range(draw(st.integers(0, 8))):
        starts_s = NOW_S + draw(starts_in_s)
        due_s = starts_s + draw(time_left_s)
        requests.append(Request(100 + i, draw(agent_id), due_s, draw(offered), draw(weight), starts_s))
    transfers = []
    for i in range(draw(st.integers(0, 4))):
        due_s = NOW_S + draw(time_left_s)
        transfers.append(Transfer(200 + i, draw(agent_id), draw(st.floats(0, 1e7)), due_s, due_s, draw(weight)))
    workers = draw(st.none() | st.lists(st.floats(NOW_S, NOW_S + 5), min_size=1, max_size=3).map(tuple))
    on_infeasible = draw(st.sampled_from(["local", "late"]))
    return Problem(
        draw(st.floats(1e-3, 1000)), agents, tuple(requests), tuple(transfers), workers, on_infeasible, NOW_S
    )


# What an option meets.


@given(
    st.builds(option, st.just("full"), st.integers(0, 10**8), st.floats(0, 500), st.floats(0, 1000), quality),
    st.floats(-100, 10_000),
    st.floats(0.01, 1000),
    st.floats(1, 100),
)
def test_a_rate_meets_a_deadline_from_the_least_rate_on(
    offered: ModeOption, left_ms: float, mbps: float, more: float
) -> None:
    least_mbps = offered.least_mbps(left_ms)
    if least_mbps < float("inf"):
        assert offered.meets(least_mbps, left_ms) and offered.meets(least_mbps * more, left_ms)
    # A rate that is lower, by more than the rounding of the time, doesn't meet it.
    if offered.meets(mbps, left_ms):
        assert mbps >= offered.least_mbps(left_ms * (1 + 2 * ROUNDING)) * (1 - ROUNDING)
    else:
        assert mbps < least_mbps * (1 + ROUNDING)


@given(problems(), st.floats(0.01, 1000))
def test_in_a_problem_the_first_free_worker_must_be_soon_enough_too(problem: Problem, mbps: float) -> None:
    free_s = min(problem.workers_free_s) if problem.workers_free_s else NOW_S
    for request in problem.requests:
        for offered in request.options:
            left_ms = problem.time_left_ms(request)
            cloud_ends_s = max(NOW_S, free_s) + offered.cloud_ms / 1e3 if offered.cloud_ms else NOW_S
            slack_s = request.due_s - cloud_ends_s
            if problem.meets(request, offered, mbps):
                assert offered.meets(mbps, left_ms * (1 + ROUNDING)) and (slack_s >= -1e-6 or not offered.cloud_ms)
                assert problem.ready_ms(request, offered, mbps) <= left_ms * (1 + 2 * ROUNDING)
            else:
                assert not offered.meets(mbps, left_ms) or slack_s < 1e-6
            least_mbps = offered.least_mbps(left_ms)
            if least_mbps < float("inf") and slack_s > 1e-6:
                assert problem.meets(request, offered, least_mbps)


@MINIMUM_RATE
def test_the_first_free_worker_is_waited_for(name: str) -> None:
    full, local = option("full", 1_250_000, 0, 100, 100), option("local", 0, 500, 0, 60)
    asking = Request(1, 0, 1.1, (full, local))
    waiting = Problem(100, (AgentInfo(0, 1),), (asking,), workers_free_s=(0.9, 2.0))
    assert make_policy(name).solve(waiting).choices[1] == (full, True)
    assert waiting.ready_ms(asking, full, 100) == pytest.approx(1000)
    busy = Problem(100, (AgentInfo(0, 1),), (asking,), workers_free_s=(1.001, 2.0))
    assert make_policy(name).solve(busy).choices[1] == (local, True)


# The contract.


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=60, deadline=None)
@given(problem=problems(options))
def test_contract(name: str, problem: Problem) -> None:
    policy = make_policy(name)
    solution = policy.solve(problem)
    assert bool(solution.grants_mbps) != policy.minimum_rate
    assert sum(solution.grants_mbps.values()) <= problem.uplink_mbps * (1 + 1e-8)
    assert all(grant >= 0 for grant in solution.grants_mbps.values())
    assert set(solution.choices) == {request.request_id for request in problem.requests}
    for request in problem.requests:
        chosen, meets = solution.choices[request.request_id]
        assert chosen in request.options
        if not policy.minimum_rate:
            assert meets == chosen.meets(solution.grants_mbps[request.agent_id], problem.time_left_ms(request))
    assert make_policy(name).solve(problem) == solution, "a policy is a function of its problem"


@MINIMUM_RATE
@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_choices_by_minimum_rate(name: str, problem: Problem) -> None:
    solution = make_policy(name).solve(problem)
    needed_mbps = 0.0
    for request in problem.requests:
        chosen, meets = solution.choices[request.request_id]
        if meets:
            least_mbps = chosen.least_mbps(problem.time_left_ms(request))
            # A hair more than the least, for the rounding of absolute times.
            assert problem.meets(request, chosen, least_mbps * (1 + 1e-6))
            needed_mbps += least_mbps
            continue
        silent = [o for o in request.options if not o.wire_bytes]
        if problem.on_infeasible == "local" and silent:
            assert chosen in silent
        else:
            assert chosen.wire_bytes == min(o.wire_bytes for o in request.options if o.wire_bytes)
    assert needed_mbps <= problem.uplink_mbps * (1 + 1e-8)
    shares = shares_of(problem, solution)
    numbers = {each.request_id for each in (*problem.requests, *problem.transfers)}
    assert set(shares.rates_mbps) == numbers and all(mbps >= 0 for mbps in shares.rates_mbps.values())
    if sending_of(problem, solution):
        assert shares.granted_mbps == pytest.approx(problem.uplink_mbps), "nothing is left lying about"


@MINIMUM_RATE
def test_nothing_to_do(name: str) -> None:
    assert make_policy(name).solve(Problem(10, (AgentInfo(0, 1),), ())) == Solution({}, {})


def test_shares_as_published() -> None:
    agents = (AgentInfo(0, 10), AgentInfo(1, 30))
    assert make_policy("equal").solve(Problem(100, agents, ())).grants_mbps == {0: 50, 1: 50}
    assert make_policy("model_aware").solve(Problem(100, agents, ())).grants_mbps == {0: 25, 1: 75}


FULL = option("full", 1_000_000, 0, 100, 100)  # 8 s at 1 Mbit/s
INT8 = option("int8", 500_000, 3, 100, 99)
MIXED = option("mixed_int4", 300_000, 3, 100, 107)
INT4 = option("int4", 250_000, 3, 100, 96)
LOCAL = option("local", 0, 170, 0, 75)


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
    assert solution.choices[5].option == INT8
    with pytest.raises(ValueError, match="no mode 'int8', only full"):
        policy.solve(Problem(1, agents, (Request(5, 0, 10, (FULL,)),)))


@pytest.mark.parametrize("name", ["nonsense", "static_", ""])
def test_unknown_policies_say_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match=r"there are .*equal.*static_<mode>"):
        make_policy(name)
