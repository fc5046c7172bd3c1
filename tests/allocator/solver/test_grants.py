"""What is left goes where it helps; nobody who meets a deadline pays for those who don't."""

import pytest

from allocator.policies import make_policy
from allocator.problem import AgentInfo, ModeOption, Problem, Request, Solution, Transfer, Unsaved
from kvcache.modes import parse_mode

FULL = ModeOption(parse_mode("full"), 1_250_000, 0, 100, 100)  # 10 Mbit/s for one second
SMALL = ModeOption(parse_mode("scout"), 125_000, 0, 100, 90)
LOCAL = ModeOption(parse_mode("local"), 0, 500, 0, 60)
AGENTS = tuple(AgentInfo(i, 1) for i in range(4))
BY_NEED = pytest.mark.parametrize("name", ["deadline", "greedy", "optimal"])


def solved(name: str, problem: Problem) -> Solution:
    return make_policy(name).solve(problem)


@BY_NEED
def test_all_that_is_left_goes_to_one(name: str) -> None:
    transfers = (Transfer(1, 0, 1_250_000, 2000), Transfer(2, 1, 1_000_000, 1000))
    solution = solved(name, Problem(50, AGENTS, (Request(3, 2, 1100, (FULL,)),), transfers))
    assert solution.grants_mbps == pytest.approx({0: 5, 1: 35, 2: 10})
    sooner = solved(name, Problem(50, AGENTS, (Request(3, 2, 900, (SMALL,)),), transfers))
    assert sooner.grants_mbps == pytest.approx({0: 5, 1: 8, 2: 37})
    assert sooner.assignments[3].grant_mbps == pytest.approx(37)
    assert sooner.assignments[3].predicted_ms == pytest.approx(SMALL.latency_ms(37))


@BY_NEED
def test_a_transfer_served_at_its_need_keeps_its_grant(name: str) -> None:
    transfers = (Transfer(1, 0, 1_250_000, 2000), Transfer(2, 1, 1_000_000, 1000))
    assert solved(name, Problem(50, AGENTS, (), transfers)).grants_mbps == pytest.approx({0: 5, 1: 45})
    later = (Transfer(1, 0, 1_250_000 - 62_500, 1900), Transfer(2, 1, 1_000_000 - 562_500, 900))
    assert solved(name, Problem(50, AGENTS, (), later)).grants_mbps == pytest.approx({0: 5, 1: 45})


@BY_NEED
def test_announced_requests_reserve_but_do_not_send(name: str) -> None:
    requests = (Request(1, 0, 1100, (FULL,)), Request(2, 1, 1100, (FULL, SMALL), starts_in_ms=300.0))
    solution = solved(name, Problem(15, AGENTS, requests))
    assert solution.assignments[2].mode == SMALL.mode and solution.assignments[2].grant_mbps == pytest.approx(1)
    assert solution.grants_mbps == pytest.approx({0: 15})


@BY_NEED
@pytest.mark.parametrize(("unsaved", "option"), [("local", LOCAL), ("late", SMALL)])
def test_the_unsaved_get_only_what_is_left(name: str, unsaved: Unsaved, option: ModeOption) -> None:
    lost = Request(1, 0, 50, (FULL, SMALL, LOCAL))
    saved = Request(2, 1, 1100, (FULL,))
    late = Transfer(3, 2, 1000, -5)
    solution = solved(name, Problem(16, AGENTS, (lost, saved), (late,), unsaved=unsaved))
    assert solution.assignments[1].mode == option.mode and not solution.assignments[1].meets
    assert solution.grants_mbps[1] == pytest.approx(10) and solution.assignments[2].meets
    assert solution.grants_mbps[2] == pytest.approx(6 if unsaved == "local" else 3)
    assert solution.grants_mbps.get(0) == (None if unsaved == "local" else pytest.approx(3))


@BY_NEED
def test_without_local_the_unsaved_are_late(name: str) -> None:
    solution = solved(name, Problem(16, AGENTS, (Request(1, 0, 50, (FULL, SMALL)),)))
    assert solution.assignments[1].mode == SMALL.mode
    assert solution.assignments[1].predicted_ms == pytest.approx(SMALL.latency_ms(16))


@BY_NEED
def test_as_many_transfers_as_possible_are_kept(name: str) -> None:
    transfers = (Transfer(1, 0, 1_250_000, 1000), Transfer(2, 1, 625_000, 1000), Transfer(3, 2, 625_000, 1000))
    assert solved(name, Problem(11, AGENTS, (), transfers)).grants_mbps == pytest.approx({0: 1, 1: 5, 2: 5})


@BY_NEED
def test_the_first_free_worker_is_waited_for(name: str) -> None:
    request = Request(1, 0, 1100, (FULL, LOCAL))
    waiting = solved(name, Problem(100, AGENTS, (request,), workers_free_in_ms=(900.0, 2000.0)))
    assert waiting.assignments[1].mode == FULL.mode and waiting.assignments[1].predicted_ms == pytest.approx(1000)
    busy = solved(name, Problem(100, AGENTS, (request,), workers_free_in_ms=(1001.0, 2000.0)))
    assert busy.assignments[1].mode == LOCAL.mode and busy.assignments[1].meets


@BY_NEED
def test_nothing_to_do(name: str) -> None:
    assert solved(name, Problem(10, AGENTS, ())) == Solution({}, {})
    tiny = solved(name, Problem(1e-9, AGENTS, (Request(1, 0, 1000, (FULL,)),)))
    assert not tiny.assignments[1].meets and tiny.grants_mbps == pytest.approx({0: 1e-9})
