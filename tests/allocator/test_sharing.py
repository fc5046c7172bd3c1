"""The uplink over time: grants by due time save all that can be saved, and newcomers get no more than what is left."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, combinations

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from allocator.policies import make_policy
from allocator.problem import AgentInfo, ModeOption, OnInfeasible, Problem, Request, Solution, Transfer
from allocator.sharing import (
    BYTES_PER_S,
    SAME_BYTES,
    beside_transfers,
    finish_times_s,
    least_grant_mbps,
    sending_of,
    share_uplink,
    shares_of,
)
from tests.support.options import option

GONE_BYTES = 1e-3
NOW_S = 64.0  # times are absolute: most problems here begin then
uplinks_mbps = st.integers(1, 1000).map(float)


def transfer(number: int, bytes_left: float, due_ms: float, late_ms: float | None = None) -> Transfer:
    """Of the agent of the same number; times count from NOW_S."""
    late_ms = due_ms if late_ms is None else late_ms
    return Transfer(number, number, bytes_left, NOW_S + due_ms / 1e3, NOW_S + late_ms / 1e3)


def in_order(transfers: Sequence[Transfer]) -> list[Transfer]:
    return sorted(transfers, key=lambda t: (t.due_s, t.request_id))


def fits(transfers: Sequence[Transfer], uplink_mbps: float, more_bytes: float = 0.0) -> bool:
    """Whether sending one after the other, the earliest due first, has each through before it is late."""
    order = in_order(transfers)
    sent = accumulate(t.bytes_left for t in order)
    return all(
        total <= uplink_mbps * BYTES_PER_S * (t.late_s - NOW_S) + more_bytes
        for total, t in zip(sent, order, strict=True)
    )


def most(transfers: Sequence[Transfer], uplink_mbps: float, more_bytes: float) -> int:
    """How many can be in time, by trying all sets."""
    for number in range(len(transfers), 0, -1):
        if any(fits(chosen, uplink_mbps, more_bytes) for chosen in combinations(transfers, number)):
            return number
    return 0


def through_s(
    transfers: Sequence[Transfer], uplink_mbps: float, now_s: float = NOW_S, gone_bytes: float = GONE_BYTES
) -> dict[int, float]:
    """When each transfer is through, in a fluid that is shared anew whenever one begins or ends. One for each agent."""
    ends_s: dict[int, float] = {}
    waiting = sorted((replace(t) for t in transfers), key=lambda t: max(now_s, t.starts_s))
    while waiting:
        sending = [t for t in waiting if t.starts_s <= now_s]
        later_s = [t.starts_s for t in waiting if t.starts_s > now_s]
        grants = share_uplink(sending, uplink_mbps, now_s)
        rates = {t.request_id: grants[t.agent_id] * BYTES_PER_S for t in sending}
        ends = [t.bytes_left / rates[t.request_id] for t in sending if rates[t.request_id] > 0]
        step_s = min(ends + [at_s - now_s for at_s in later_s])
        now_s = min(later_s) if later_s and step_s == min(later_s) - now_s else now_s + step_s
        for t in sending:
            t.bytes_left -= rates[t.request_id] * step_s
            if t.bytes_left <= gone_bytes:
                ends_s[t.request_id] = now_s
        waiting = [t for t in waiting if t.request_id not in ends_s]
    return ends_s


def all_through_in_time(transfers: Sequence[Transfer], uplink_mbps: float) -> bool:
    ends_s = through_s(transfers, uplink_mbps)
    rounding_s = 1e-9 + len(transfers) * SAME_BYTES / (uplink_mbps * BYTES_PER_S)
    return all(ends_s[t.request_id] <= t.late_s + rounding_s for t in transfers)


Drawn = tuple[list[Transfer], float]


@st.composite
def shared(draw: st.DrawFn, in_one_order: bool = False, most_transfers: int = 7) -> Drawn:
    """Transfers and the uplink. No transfer is late before it is due.

    `in_one_order`: those that are due earlier are also late earlier. Many sizes and times coincide.
    """
    uplink_mbps = draw(uplinks_mbps)
    number = draw(st.integers(1, most_transfers))
    part_ms = st.integers(-2, 24).map(lambda eighths: eighths / 8)  # of what the largest takes alone
    sizes = draw(st.lists(st.integers(1, 12), min_size=number, max_size=number))
    unit_bytes = draw(st.sampled_from([1_000.0, 300_000.0, 777_777.7]))
    longest_ms = 12 * unit_bytes / (uplink_mbps * BYTES_PER_S) * 1e3
    due_ms = [longest_ms * part for part in draw(st.lists(part_ms, min_size=number, max_size=number))]
    if in_one_order:
        precaution_ms = [longest_ms * draw(st.integers(0, 4)) / 8] * number
    else:
        precaution_ms = [longest_ms * eighths / 8 for eighths in draw(_counts(number, 8))]
    transfers = [transfer(i, sizes[i] * unit_bytes, due_ms[i], due_ms[i] + precaution_ms[i]) for i in range(number)]
    return transfers, uplink_mbps


def _counts(number: int, largest: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, largest), min_size=number, max_size=number)


@st.composite
def fitting(draw: st.DrawFn) -> Drawn:
    """As `shared`, but sent in order of due time all are through by their last moment, often only just."""
    transfers, uplink_mbps = draw(shared())
    more_ms = draw(_counts(len(transfers), 3))
    sent = accumulate(t.bytes_left for t in in_order(transfers))
    for t, total_bytes, more in zip(in_order(transfers), sent, more_ms, strict=True):
        t.late_s = max(NOW_S + total_bytes / (uplink_mbps * BYTES_PER_S), t.due_s) + more / 1e3
    return transfers, uplink_mbps


@given(shared(), st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_grants_add_up_to_the_uplink(drawn: Drawn, agents: list[int]) -> None:
    transfers, uplink_mbps = drawn
    transfers = [replace(t, agent_id=agents[i]) for i, t in enumerate(transfers)]
    grants = share_uplink(transfers, uplink_mbps, NOW_S)
    assert set(grants) == {t.agent_id for t in transfers}
    assert all(mbps >= 0 for mbps in grants.values())
    assert sum(grants.values()) == pytest.approx(uplink_mbps, rel=1e-9)


def test_without_transfers_there_are_no_grants() -> None:
    assert share_uplink([], 50.0, NOW_S) == {}
    assert finish_times_s([], 50.0, NOW_S) == {}


@given(fitting())
def test_what_can_be_through_in_order_of_due_time_is(drawn: Drawn) -> None:
    assert all_through_in_time(*drawn)


@given(fitting())
def test_no_transfer_is_given_up_when_all_fit(drawn: Drawn) -> None:
    """In order of due time each gets its need, as far as it goes: none is passed over for one that is due later."""
    transfers, uplink_mbps = drawn
    grants = share_uplink(transfers, uplink_mbps, NOW_S)
    left_mbps = uplink_mbps
    for t in in_order(transfers):
        need_mbps = min(t.least_mbps(NOW_S), left_mbps)
        assert grants[t.agent_id] >= need_mbps - 1e-9 * uplink_mbps
        left_mbps -= need_mbps


@given(shared(in_one_order=True))
def test_as_many_are_in_time_as_any_choice_could_save(drawn: Drawn) -> None:
    transfers, uplink_mbps = drawn
    ends_s = through_s(transfers, uplink_mbps)
    bytes_late = [(ends_s[t.request_id] - t.late_s) * uplink_mbps * BYTES_PER_S for t in transfers]
    rounding_bytes = SAME_BYTES * len(transfers) + 1e-2
    assert sum(late <= rounding_bytes for late in bytes_late) >= most(transfers, uplink_mbps, 0.0)
    assert sum(late <= 0 for late in bytes_late) <= most(transfers, uplink_mbps, rounding_bytes)


@given(shared(most_transfers=5))
# One that is lost is due a little after one that isn't: that one was given up, being larger.
@example(([transfer(1, 400_000, -50.0, 500.0), transfer(2, 300_000, -30.0, -10.0)], 10.0))
# Even without the largest the last one is too late: it has to go itself.
@example(
    ([transfer(1, 3_000, 1.0, 50.0), transfer(2, 3_000, 2.0, 50.0), transfer(3, 1_000, 3.0, 3.0)], 1.0),
)
def test_one_is_in_time_wherever_any_can_be(drawn: Drawn) -> None:
    """Also where precautions differ, and so being due first is not being late first."""
    transfers, uplink_mbps = drawn
    ends_s = through_s(transfers, uplink_mbps)
    in_time = any(ends_s[t.request_id] <= t.late_s + 1e-6 for t in transfers)
    assert in_time >= any(fits([t], uplink_mbps) for t in transfers)
    assert in_time <= any(fits([t], uplink_mbps, SAME_BYTES) for t in transfers)


@given(shared(), st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_transfers_of_one_agent_share_its_grant(drawn: Drawn, agents: list[int]) -> None:
    transfers, uplink_mbps = drawn
    each = share_uplink(transfers, uplink_mbps, NOW_S)
    of_one = [replace(t, agent_id=agents[i]) for i, t in enumerate(transfers)]
    for agent_id, mbps in share_uplink(of_one, uplink_mbps, NOW_S).items():
        own = sum(each[t.agent_id] for i, t in enumerate(transfers) if agents[i] == agent_id)
        assert mbps == pytest.approx(own, rel=1e-9, abs=1e-9 * uplink_mbps)


@given(fitting(), st.floats(0.01, 0.99))
def test_grants_stay_as_they_are_while_time_passes(drawn: Drawn, part: float) -> None:
    transfers, uplink_mbps = drawn
    grants = share_uplink(transfers, uplink_mbps, NOW_S)
    rates = {agent_id: mbps * BYTES_PER_S for agent_id, mbps in grants.items()}
    passed_s = part * min(t.bytes_left / rates[t.agent_id] for t in transfers if rates[t.agent_id] > 0)
    carried = [replace(t, bytes_left=t.bytes_left - rates[t.agent_id] * passed_s) for t in transfers]
    later = share_uplink(carried, uplink_mbps, NOW_S + passed_s)
    # The remainder may pass to another, which has the least left now.
    least_bytes = min(t.bytes_left for t in carried)
    for before, t in zip(transfers, carried, strict=True):
        if grants[t.agent_id] == before.least_mbps(NOW_S):
            assert later[t.agent_id] >= grants[t.agent_id] - 1e-6 * uplink_mbps
            if t.bytes_left > least_bytes + SAME_BYTES:
                assert later[t.agent_id] == pytest.approx(grants[t.agent_id], rel=1e-6, abs=1e-6 * uplink_mbps)


def test_the_remainder_goes_to_the_transfer_that_has_the_least_left() -> None:
    transfers = [transfer(1, 500_000, 1000.0), transfer(2, 100_000, 2000.0), transfer(3, 100_000.5, 500.0)]
    grants = share_uplink(transfers, 20.0, NOW_S)
    assert grants == pytest.approx({1: 4.0, 2: 20.0 - 4.0 - 1.600008, 3: 1.600008})


def test_the_largest_is_given_up_and_gets_the_rest_last() -> None:
    transfers = [transfer(0, 1_250_000, 1000), transfer(1, 625_000, 1000), transfer(2, 625_000, 1000)]
    assert share_uplink(transfers, 11, NOW_S) == pytest.approx({0: 0, 1: 6, 2: 5})
    assert share_uplink(transfers[:2], 6, NOW_S) == pytest.approx({0: 0, 1: 6})
    assert share_uplink(transfers[:1], 6, NOW_S) == pytest.approx({0: 6}), "late, but alone"


# When transfers end.


@given(shared(), _counts(7, 6), st.sampled_from([0.0, 0.125, 0.3]))
def test_finish_times_are_those_of_the_rule_stepped_forward(drawn: Drawn, starts: list[int], unit_s: float) -> None:
    """Whenever a transfer begins or ends, the uplink is shared anew; transfers may begin later."""
    transfers, uplink_mbps = drawn
    for t, units in zip(transfers, starts, strict=False):
        t.starts_s = NOW_S + units * unit_s
    before = [replace(t) for t in transfers]
    ends_s = finish_times_s(transfers, uplink_mbps, NOW_S)
    expected_s = through_s(transfers, uplink_mbps, gone_bytes=SAME_BYTES)
    assert ends_s == pytest.approx(expected_s, rel=0, abs=1e-7)
    assert all(ends_s[t.request_id] > t.starts_s for t in transfers)
    assert list(map(repr, transfers)) == list(map(repr, before)), "a forecast changes no transfer"
    for t in transfers:
        until = finish_times_s(transfers, uplink_mbps, NOW_S, until_id=t.request_id)
        assert until[t.request_id] == ends_s[t.request_id]


@given(shared())
def test_the_uplink_is_busy_until_the_last_transfer_ends(drawn: Drawn) -> None:
    """Work-conserving: the order of transfers doesn't change when all are through."""
    transfers, uplink_mbps = drawn
    all_s = sum(t.bytes_left for t in transfers) / (uplink_mbps * BYTES_PER_S)
    rounding_s = 1e-9 + len(transfers) * SAME_BYTES / (uplink_mbps * BYTES_PER_S)
    assert max(finish_times_s(transfers, uplink_mbps, NOW_S).values()) == pytest.approx(NOW_S + all_s, abs=rounding_s)


def test_one_that_begins_later_takes_its_share_only_then() -> None:
    soon, later = transfer(1, 1_000_000, 4000.0), transfer(2, 250_000, 1500.0)
    later.starts_s = NOW_S + 0.5
    # All of 8 Mbit/s for half a second; the later one needs 2 of them and has least left, so that it gets the rest.
    least_mbps = 500_000 * 8e-6 / 3.5
    ends_s = finish_times_s([soon, later], 8.0, NOW_S)
    assert ends_s[2] - NOW_S == pytest.approx(0.5 + 2.0 / (8.0 - least_mbps))
    assert ends_s[1] - NOW_S == pytest.approx(1.25), "nothing is left lying about"


# Shares of a solution: transfers in flight and requests decided at once.

FULL = option("full", 1_250_000, 0, 100, 100)  # 10 Mbit/s for one second
SMALL = option("scout", 125_000, 0, 100, 90)
LOCAL = option("local", 0, 500, 0, 60)
AGENTS = tuple(AgentInfo(i, 1) for i in range(4))
MINIMUM_RATE = pytest.mark.parametrize("name", ["deadline", "greedy", "optimal"])


def problem(
    uplink_mbps: float,
    requests: Sequence[Request] = (),
    transfers: Sequence[Transfer] = (),
    on_infeasible: OnInfeasible = "local",
) -> Problem:
    return Problem(uplink_mbps, AGENTS, tuple(requests), tuple(transfers), None, on_infeasible, NOW_S)


def request(number: int, agent_id: int, left_ms: float, *options: ModeOption, starts_in_ms: float = 0.0) -> Request:
    starts_s = NOW_S + starts_in_ms / 1e3
    return Request(number, agent_id, starts_s + left_ms / 1e3, options, 1.0, starts_s)


def grants_of(asked: Problem, solution: Solution) -> dict[int, float]:
    return share_uplink(sending_of(asked, solution), asked.uplink_mbps, NOW_S)


@MINIMUM_RATE
def test_all_of_the_remainder_goes_to_one(name: str) -> None:
    transfers = transfer(0, 1_250_000, 2000), transfer(1, 1_000_000, 1000)
    asked = problem(50, [request(3, 2, 1100, FULL)], transfers)
    solution = make_policy(name).solve(asked)
    assert grants_of(asked, solution) == pytest.approx({0: 5, 1: 35, 2: 10})
    shares = shares_of(asked, solution)
    assert shares.rates_mbps == pytest.approx({0: 5, 1: 35, 3: 10}) and shares.granted_mbps == pytest.approx(50)
    asked = problem(50, [request(3, 2, 900, SMALL)], transfers)
    solution = make_policy(name).solve(asked)
    assert grants_of(asked, solution) == pytest.approx({0: 5, 1: 8, 2: 37})
    assert shares_of(asked, solution).rates_mbps[3] == pytest.approx(37)


@MINIMUM_RATE
def test_announced_requests_reserve_but_do_not_send(name: str) -> None:
    asked = problem(15, [request(1, 0, 1100, FULL), request(2, 1, 1100, FULL, SMALL, starts_in_ms=300)])
    solution = make_policy(name).solve(asked)
    assert solution.choices[2] == (SMALL, True)
    assert grants_of(asked, solution) == pytest.approx({0: 15})
    shares = shares_of(asked, solution)
    assert shares.rates_mbps == pytest.approx({1: 15, 2: 1}) and shares.granted_mbps == pytest.approx(15)


@MINIMUM_RATE
@pytest.mark.parametrize("on_infeasible", ["local", "late"])
def test_late_ones_are_served_after_the_others(name: str, on_infeasible: OnInfeasible) -> None:
    lost, saved = request(1, 0, 50, FULL, SMALL, LOCAL), request(2, 1, 1100, FULL)
    late = transfer(2, 1000, -5)
    asked = problem(16, [lost, saved], [late], on_infeasible)
    solution = make_policy(name).solve(asked)
    assert solution.choices == {1: (LOCAL if on_infeasible == "local" else SMALL, False), 2: (FULL, True)}
    # The transfer has fewest bytes left of the two that are late.
    assert grants_of(asked, solution) == pytest.approx(
        {1: 10, 2: 6} if on_infeasible == "local" else {0: 0, 1: 10, 2: 6}
    )


@MINIMUM_RATE
def test_a_late_one_alone_gets_all(name: str) -> None:
    asked = problem(16, [request(1, 0, 50, FULL, SMALL)])
    solution = make_policy(name).solve(asked)
    assert solution.choices[1] == (SMALL, False)
    assert shares_of(asked, solution).rates_mbps == pytest.approx({1: 16})
    tiny = problem(1e-9, [request(1, 0, 1000, FULL)])
    solution = make_policy(name).solve(tiny)
    assert not solution.choices[1].meets and grants_of(tiny, solution) == pytest.approx({0: 1e-9})


def test_shares_of_a_solution_with_grants_are_its_grants() -> None:
    asked = problem(16, [request(1, 0, 1100, FULL), request(2, 1, 1100, FULL)], [transfer(3, 1_000_000, 500)])
    shares = shares_of(asked, make_policy("equal").solve(asked))
    assert shares.rates_mbps == {1: 4, 2: 4} and shares.granted_mbps == 16


# What a new request sees.


def size(wire_bytes: int, edge_ms: float = 0.0, cloud_ms: float = 0.0) -> ModeOption:
    return option("full", wire_bytes, edge_ms, cloud_ms, 90.0)


sizes_and_times = st.lists(st.tuples(st.integers(1, 5_000_000), st.floats(-500, 20_000)), max_size=7)


@given(sizes_and_times, uplinks_mbps, st.floats(-500, 20_000), st.floats(0, 500), st.floats(0, 500))
def test_a_newcomer_sees_no_more_than_the_uplink(
    sent: list[tuple[int, float]], uplink_mbps: float, time_left_ms: float, edge_ms: float, cloud_ms: float
) -> None:
    transfers = [transfer(i, of_size, due_ms) for i, (of_size, due_ms) in enumerate(sent)]
    newcomer = request(99, 99, time_left_ms, size(1000), size(5000, edge_ms, cloud_ms))
    asked = replace(problem(uplink_mbps, [newcomer], transfers, "late"), workers_free_s=(NOW_S + 0.003,))
    left = beside_transfers(asked)
    assert 0 < left.uplink_mbps <= uplink_mbps
    assert left == replace(asked, uplink_mbps=left.uplink_mbps, transfers=()), "nothing else changes"
    if not transfers:
        assert left == asked
    more = beside_transfers(replace(asked, transfers=(*transfers, transfer(50, 1000, 100.0))))
    assert more.uplink_mbps <= left.uplink_mbps, "more transfers never leave more"


def test_without_requests_there_is_nothing_to_leave() -> None:
    asked = problem(50.0, transfers=[transfer(1, 1e6, 100.0)])
    assert beside_transfers(asked) == replace(asked, transfers=())


def test_what_is_due_later_can_wait() -> None:
    newcomer = request(99, 99, 1000.0, size(10_000))
    soon, late = (
        beside_transfers(problem(8.0, [newcomer], [transfer(1, 500_000, due_ms)])).uplink_mbps
        for due_ms in (500.0, 2000.0)
    )
    assert soon == pytest.approx(8.0 - 4.0), "through within the second, which takes half of it"
    assert late == pytest.approx(8.0 - 2.0)


@st.composite
def before_a_newcomer(draw: st.DrawFn) -> tuple[list[Transfer], float, float]:
    """Transfers that can be in time, the uplink, and a time by which all of them are due."""
    transfers, uplink_mbps = draw(fitting())
    # Shifted, since transfers sent in order of due time are in time only if none is due before it can be through.
    for t in transfers:
        t.due_s = t.late_s = max(t.late_s, NOW_S + 1e-3)
    assume(fits(transfers, uplink_mbps))
    until_s = max(t.due_s for t in transfers) - NOW_S + draw(st.sampled_from([0.0, 1e-3, 0.5]))
    return transfers, uplink_mbps, until_s


@given(before_a_newcomer(), st.floats(0.01, 1.0), st.floats(0, 300), st.floats(0, 300))
def test_what_is_admitted_beside_transfers_is_in_time_with_them(
    drawn: tuple[list[Transfer], float, float], part: float, edge_ms: float, cloud_ms: float
) -> None:
    transfers, uplink_mbps, until_s = drawn
    time_left_ms = until_s * 1e3 + edge_ms + cloud_ms
    newcomer = request(99, 99, time_left_ms, size(1, edge_ms, cloud_ms))
    left_mbps = beside_transfers(problem(uplink_mbps, [newcomer], transfers)).uplink_mbps
    assume(left_mbps > least_grant_mbps(uplink_mbps))  # which it gets in any case, in time or not
    admitted = size(int(part * left_mbps * BYTES_PER_S * until_s), edge_ms, cloud_ms)
    assume(admitted.wire_bytes > 0)
    assert admitted.least_mbps(time_left_ms) <= left_mbps * (1 + 1e-9)
    together = [*transfers, transfer(99, admitted.wire_bytes, until_s * 1e3)]
    assert all_through_in_time(together, uplink_mbps)


def test_nobody_gets_more_than_its_connection_can_use() -> None:
    """What one can't use goes to the next; without ceilings all of it would go to the smallest."""
    small, large = transfer(1, 100_000, 5000.0), transfer(2, 1_000_000, 5000.0)
    small.ceiling_mbps = 3.0
    grants = share_uplink([small, large], 10.0, NOW_S)
    assert grants == pytest.approx({1: 3.0, 2: 7.0})
    large.ceiling_mbps = 1.0
    assert share_uplink([small, large], 10.0, NOW_S) == pytest.approx({1: 3.0, 2: 1.0})


def played_forward(transfers: list[Transfer], uplink_mbps: float, now_s: float) -> dict[int, float]:
    """`finish_times_s` by its definition: share the uplink anew whenever a transfer begins or ends."""
    coming = sorted((replace(t) for t in transfers), key=lambda t: max(now_s, t.starts_s))
    active: list[Transfer] = []
    ends: dict[int, float] = {}
    while active or coming:
        if not active:
            now_s = max(now_s, coming[0].starts_s)
        while coming and coming[0].starts_s <= now_s:
            active.append(coming.pop(0))
        rates = share_uplink(active, uplink_mbps, now_s)  # one transfer for each agent
        steps = [t.bytes_left / (rates[t.agent_id] * 125_000) for t in active if rates[t.agent_id] > 0]
        step_s = min(steps + [coming[0].starts_s - now_s for _ in coming[:1]])
        now_s += step_s
        for t in active:
            t.bytes_left -= rates[t.agent_id] * 125_000 * step_s
            if t.bytes_left <= 1.0:
                ends[t.request_id] = now_s
        active = [t for t in active if t.request_id not in ends]
    return ends


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_finish_times_are_exactly_those_of_sharing_again_at_every_event(seed: int) -> None:
    rng = np.random.default_rng(seed)
    transfers = []
    for number in range(int(rng.integers(1, 20))):
        due_s = float(rng.choice([1.0, 2.0, rng.uniform(-0.5, 6)]))
        late_s, starts_s = due_s + float(rng.choice([0, 0.3])), float(rng.choice([0, 0, rng.uniform(-1, 3)]))
        size, ceiling = float(rng.choice([500.0, 2e5, rng.uniform(1, 3e6)])), float(rng.choice([np.inf, 0.7, 6.0]))
        transfers.append(Transfer(number, number, size, due_s, late_s, 1.0, starts_s, ceiling))
    uplink_mbps = float(rng.choice([0.5, 20.0, 100.0]))
    before = [replace(t) for t in transfers]
    assert finish_times_s(transfers, uplink_mbps, 0.0) == played_forward(transfers, uplink_mbps, 0.0)
    assert [(t.bytes_left, t.starts_s) for t in transfers] == [(t.bytes_left, t.starts_s) for t in before]
