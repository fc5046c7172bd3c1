"""With something to fall back on, plans count on what is likely; without, on what is safe. Whatever the policy."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.online.hedging import solve_hedged
from allocator.policies import POLICIES, make_policy
from allocator.problem import AgentInfo, ModeOption, OnInfeasible, Problem, Request
from tests.support.options import option

FULL = option("full", 1_000_000, 0, 100, 100)  # 8 s at 1 Mbit/s
INT8 = option("int8", 500_000, 3, 100, 99)
INT4 = option("int4", 250_000, 3, 100, 90)
PROMPT = option("prompt", 700, 0, 150, 80)
SCOUT = option("scout", 400, 10, 400, 85)
LOCAL = option("local", 0, 170, 0, 60)
OUTAGE_MBPS = [0.5, 10.0, 10.0, 12.0]
MINIMUM_RATE = ["deadline", "greedy", "optimal"]
ADAPTIVE = [*MINIMUM_RATE, "equal", "model_aware"]


def problem(*requests: Request, mbps: float = 10, on_infeasible: OnInfeasible = "local") -> Problem:
    agents = tuple(AgentInfo(agent_id, 10) for agent_id in sorted({r.agent_id for r in requests}))
    return Problem(mbps, agents, requests, on_infeasible=on_infeasible)


def alone(*options: ModeOption, left_ms: float = 2000, on_infeasible: OnInfeasible = "local") -> Problem:
    return problem(Request(1, 0, left_ms / 1e3, options), on_infeasible=on_infeasible)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_hedge_makes_a_likely_cache_worth_more_than_a_sure_prompt(name: str) -> None:
    solution, hedges = solve_hedged(make_policy(name), alone(FULL, INT8, PROMPT), OUTAGE_MBPS)
    assert solution.choices[1].option == FULL
    assert hedges == {1: PROMPT}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_without_anything_to_go_ahead_the_plan_is_safe(name: str) -> None:
    """Being met at all counts more than how well: nothing that an outage makes late, as long as something isn't."""
    for left_ms, offered in ((2000, (FULL, INT8, LOCAL)), (6000, (FULL, INT4, LOCAL))):
        asked = alone(*offered, left_ms=left_ms, on_infeasible="late")
        solution, hedges = solve_hedged(make_policy(name), asked, OUTAGE_MBPS)
        chosen = solution.choices[1].option
        assert hedges == {}
        assert chosen.latency_ms(OUTAGE_MBPS[0]) <= left_ms
        assert chosen == (LOCAL if left_ms == 2000 else INT4)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_where_the_edge_answers_at_the_last_moment_likely_caches_are_sent(name: str) -> None:
    for mbps, chosen in ((OUTAGE_MBPS, FULL), ([0.5, 0.5, 0.5, 0.5], LOCAL)):
        solution, hedges = solve_hedged(make_policy(name), alone(FULL, INT8, LOCAL), mbps)
        assert (solution.choices[1].option, hedges) == (chosen, {})


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_prompt_is_never_passed_over_for_the_edge(name: str) -> None:
    """Although in an outage of all the time that is left only the edge can answer."""
    solution, _ = solve_hedged(make_policy(name), alone(FULL, PROMPT, LOCAL), [0.001, 1.0, 1.0, 1.0])
    assert solution.choices[1].option == PROMPT


@pytest.mark.parametrize("name", ADAPTIVE)
def test_of_what_may_go_ahead_the_best_that_arrives_goes(name: str) -> None:
    for left_ms, ahead in ((2000, SCOUT), (400, PROMPT)):
        _, hedges = solve_hedged(make_policy(name), alone(INT8, SCOUT, PROMPT, left_ms=left_ms), [0.5, 50.0, 50.0])
        assert hedges == {1: ahead}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_what_would_not_arrive_itself_doesn_t_go_ahead(name: str) -> None:
    far = option("prompt", 700, 0, 2050, 80)
    big = option("scout", 4_000_000, 0, 100, 95)
    _, hedges = solve_hedged(make_policy(name), alone(FULL, far, big, LOCAL), [0.1, 10.0, 10.0, 10.0])
    assert hedges == {}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_one_rate_is_planned_as_ever(name: str) -> None:
    asked = alone(FULL, INT8, LOCAL)
    solution, hedges = solve_hedged(make_policy(name), asked, [10.0])
    assert solution == make_policy(name).solve(asked)
    assert hedges == {}


def test_what_is_sure_to_be_small_has_nothing_ahead_of_it() -> None:
    for mode in ("prompt", "scout", "local"):
        _, hedges = solve_hedged(make_policy(f"static_{mode}"), alone(FULL, PROMPT, SCOUT, LOCAL), OUTAGE_MBPS)
        assert hedges == {}


@pytest.mark.parametrize("name", MINIMUM_RATE)
def test_one_request_s_hedge_is_no_safety_for_another(name: str) -> None:
    """The one that has no prompt stays at home. (One rate for all: so the other plays safe, too.)"""
    requests = Request(1, 0, 2, (FULL, PROMPT)), Request(2, 1, 2, (FULL, LOCAL))
    asked = problem(*requests, on_infeasible="late")
    solution, hedges = solve_hedged(make_policy(name), asked, [0.5, 9.0, 9.0, 9.0])
    assert solution.choices[2].option == LOCAL
    assert hedges == {} and solution.choices[1].option == PROMPT


offered = st.sets(st.sampled_from([FULL, INT8, INT4]), min_size=1).flatmap(
    lambda caches: st.sets(st.sampled_from([PROMPT, SCOUT])).map(
        # `prompt`, `scout` and `local` always, for policies that use nothing else; some too slow to be of use.
        lambda quick: (
            *sorted(caches, key=lambda o: o.wire_bytes),
            *(o if o in quick else replace(o, edge_ms=0, cloud_ms=9e4, quality=1) for o in (PROMPT, SCOUT)),
            LOCAL,
        )
    )
)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    number = draw(st.integers(1, 5))
    agents = tuple(AgentInfo(agent_id, draw(st.integers(1, 100))) for agent_id in range(number))
    requests = tuple(
        Request(
            100 + agent_id,
            agent_id,
            draw(st.floats(-0.1, 5)),
            draw(offered),
            draw(st.sampled_from([1.0, 2.0])),
            draw(st.sampled_from([0.0, 0.1])),
        )
        for agent_id in range(number)
    )
    workers = draw(st.none() | st.just((0.0, 0.3)))
    return Problem(10, agents, requests, (), workers, draw(st.sampled_from(["local", "late"])))


spreads = st.lists(st.floats(0.01, 200), min_size=2, max_size=6).map(sorted)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=25, deadline=None)
@given(asked=problems(), rates=spreads)
def test_every_policy_hedges_only_caches_and_only_with_what_arrives(
    name: str, asked: Problem, rates: list[float]
) -> None:
    solution, hedges = solve_hedged(make_policy(name), asked, rates)
    assert (solution, hedges) == solve_hedged(make_policy(name), asked, rates), "the same again"
    assert set(solution.choices) == {r.request_id for r in asked.requests}
    assert sum(solution.grants_mbps.values()) <= max(rates) * (1 + 1e-8)
    requests = {r.request_id: r for r in asked.requests}
    for number, ahead in hedges.items():
        assert ahead in requests[number].options and ahead.mode.is_question
        assert solution.choices[number].option in (FULL, INT8, INT4)
        assert ahead.latency_ms(rates[-1]) <= asked.time_left_ms(requests[number]) * (1 + 1e-8)


@pytest.mark.parametrize("name", MINIMUM_RATE)
@pytest.mark.parametrize("other_agent", [0, 1])
def test_a_cache_that_would_keep_others_of_its_agent_waiting_must_be_worth_it(name: str, other_agent: int) -> None:
    """Mostly it is late, which costs itself nothing, for its prompt has gone ahead. Nobody can be sent before that."""
    options = (FULL, PROMPT, LOCAL)
    both = problem(Request(1, 0, 2.0, options), Request(2, other_agent, 2.0, options))
    solution, _ = solve_hedged(make_policy(name), both, [0.1, 0.1, 0.1, 20.0])
    assert solution.choices[1].option == (PROMPT if other_agent == 0 else FULL)
