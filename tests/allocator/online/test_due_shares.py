"""The uplink over time: grants by due time save all that can be saved, and newcomers get no more than what is left."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, combinations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from allocator.online.due_shares import NOTHING_MBPS, SAME_BYTES, beside_transfers, share_by_due
from allocator.problem import ModeOption, Problem, Request, Transfer
from kvcache.modes import parse_mode

BYTES_PER_MS = 125.0  # of 1 Mbit/s
GONE_BYTES = 1e-3
uplinks_mbps = st.integers(1, 1000).map(float)


def transfer(number: int, bytes_left: float, due_in_ms: float, agent_id: int | None = None) -> Transfer:
    return Transfer(number, number if agent_id is None else agent_id, bytes_left, due_in_ms)


def fits(transfers: Sequence[Transfer], last_ms: Sequence[float], uplink_mbps: float, more_bytes: float = 0.0) -> bool:
    """Whether sending one after the other, the earliest due first, has each through by its own `last_ms`."""
    order = sorted(range(len(transfers)), key=lambda i: (transfers[i].due_in_ms, transfers[i].request_id))
    sent = accumulate(transfers[i].bytes_left for i in order)
    return all(
        total <= uplink_mbps * BYTES_PER_MS * last_ms[i] + more_bytes for total, i in zip(sent, order, strict=True)
    )


def most(transfers: Sequence[Transfer], last_ms: Sequence[float], uplink_mbps: float, more_bytes: float) -> int:
    """How many can be in time, by trying all sets."""
    for number in range(len(transfers), 0, -1):
        for chosen in combinations(range(len(transfers)), number):
            of_chosen = [transfers[i] for i in chosen], [last_ms[i] for i in chosen]
            if fits(*of_chosen, uplink_mbps, more_bytes):
                return number
    return 0


def through_ms(transfers: Sequence[Transfer], last_ms: Sequence[float], uplink_mbps: float) -> list[float]:
    """When each transfer is through, in a fluid that is shared anew whenever one is. One transfer for each agent."""
    ends_ms = [0.0] * len(transfers)
    sending = dict(enumerate(transfers))
    now_ms = 0.0
    while sending:
        numbers = list(sending)
        grants = share_by_due(list(sending.values()), [last_ms[i] - now_ms for i in numbers], uplink_mbps)
        rates = {i: grants[sending[i].agent_id] * BYTES_PER_MS for i in numbers}
        step_ms = min(sending[i].bytes_left / rates[i] for i in numbers if rates[i] > 0)
        now_ms += step_ms
        for i, t in list(sending.items()):
            sending[i] = t._replace(bytes_left=t.bytes_left - rates[i] * step_ms, due_in_ms=t.due_in_ms - step_ms)
            if sending[i].bytes_left <= GONE_BYTES:
                ends_ms[i] = now_ms
                del sending[i]
    return ends_ms


Drawn = tuple[list[Transfer], list[float], float]


@st.composite
def shared(draw: st.DrawFn, in_one_order: bool = False, most_transfers: int = 7) -> Drawn:
    """Transfers, when each is certainly late, and the uplink. What is due is never due after that.

    `in_one_order`: who is due earlier is also late earlier. Many sizes and times coincide.
    """
    uplink_mbps = draw(uplinks_mbps)
    number = draw(st.integers(1, most_transfers))
    part_ms = st.integers(-2, 24).map(lambda eighths: eighths / 8)  # of what the largest takes alone
    sizes = draw(st.lists(st.integers(1, 12), min_size=number, max_size=number))
    unit_bytes = draw(st.sampled_from([1_000.0, 300_000.0, 777_777.7]))
    longest_ms = 12 * unit_bytes / (uplink_mbps * BYTES_PER_MS)
    due_ms = [longest_ms * part for part in draw(st.lists(part_ms, min_size=number, max_size=number))]
    if in_one_order:
        precaution_ms = [longest_ms * draw(st.integers(0, 4)) / 8] * number
    else:
        precaution_ms = [longest_ms * eighths / 8 for eighths in draw(_counts(number, 8))]
    transfers = [transfer(i, sizes[i] * unit_bytes, due_ms[i]) for i in range(number)]
    return transfers, [due + more for due, more in zip(due_ms, precaution_ms, strict=True)], uplink_mbps


def _counts(number: int, largest: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, largest), min_size=number, max_size=number)


@st.composite
def fitting(draw: st.DrawFn) -> Drawn:
    """As `shared`, but sent in order of due time all are through by their last moment, often only just."""
    transfers, _, uplink_mbps = draw(shared())
    in_order = sorted(transfers, key=lambda t: (t.due_in_ms, t.request_id))
    through = accumulate(t.bytes_left / (uplink_mbps * BYTES_PER_MS) for t in in_order)
    least_ms = {t.request_id: at_ms for t, at_ms in zip(in_order, through, strict=True)}
    more_ms = draw(_counts(len(transfers), 3))
    last_ms = [max(least_ms[t.request_id], t.due_in_ms) + more_ms[i] for i, t in enumerate(transfers)]
    return transfers, last_ms, uplink_mbps


@given(shared(), st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_grants_add_up_to_the_uplink(drawn: Drawn, agents: list[int]) -> None:
    transfers, last_ms, uplink_mbps = drawn
    transfers = [t._replace(agent_id=agents[i]) for i, t in enumerate(transfers)]
    grants = share_by_due(transfers, last_ms, uplink_mbps)
    assert set(grants) == {t.agent_id for t in transfers}
    assert all(mbps >= 0 for mbps in grants.values())
    assert sum(grants.values()) == pytest.approx(uplink_mbps, rel=1e-9)


def test_nobody_sends_nobody_gets() -> None:
    assert share_by_due([], [], 50.0) == {}


@given(fitting())
def test_what_can_be_through_in_order_of_due_time_is(drawn: Drawn) -> None:
    transfers, last_ms, uplink_mbps = drawn
    ends_ms = through_ms(transfers, last_ms, uplink_mbps)
    a_byte_ms = 1 / (uplink_mbps * BYTES_PER_MS)
    for end_ms, latest_ms in zip(ends_ms, last_ms, strict=True):
        assert end_ms <= latest_ms * (1 + 1e-9) + len(transfers) * a_byte_ms * SAME_BYTES


@given(fitting())
def test_nobody_is_given_up_when_all_fit(drawn: Drawn) -> None:
    """In order of due time each gets its need, as far as it goes: nobody is passed over for one that is due later."""
    transfers, last_ms, uplink_mbps = drawn
    grants = share_by_due(transfers, last_ms, uplink_mbps)
    left_mbps = uplink_mbps
    for t in sorted(transfers, key=lambda t: (t.due_in_ms, t.request_id)):
        need_mbps = min(t.least_mbps, left_mbps)
        assert grants[t.agent_id] >= need_mbps - 1e-9 * uplink_mbps
        left_mbps -= need_mbps


@given(shared(in_one_order=True))
def test_as_many_are_in_time_as_any_choice_could_save(drawn: Drawn) -> None:
    transfers, last_ms, uplink_mbps = drawn
    ends_ms = through_ms(transfers, last_ms, uplink_mbps)
    bytes_late = [(end - last) * uplink_mbps * BYTES_PER_MS for end, last in zip(ends_ms, last_ms, strict=True)]
    rounding_bytes = SAME_BYTES * len(transfers) + 1e-2
    assert sum(late <= rounding_bytes for late in bytes_late) >= most(transfers, last_ms, uplink_mbps, 0.0)
    assert sum(late <= 0 for late in bytes_late) <= most(transfers, last_ms, uplink_mbps, rounding_bytes)


@given(shared(most_transfers=5))
# What is lost is due a little after what isn't: that one was given up, being larger.
@example(([transfer(1, 400_000, -50.0), transfer(2, 300_000, -30.0)], [500.0, -10.0], 10.0))
# Even without the largest the last one is too late: it has to go itself.
@example(([transfer(1, 3_000, 1.0), transfer(2, 3_000, 2.0), transfer(3, 1_000, 3.0)], [50.0, 50.0, 3.0], 1.0))
def test_somebody_is_in_time_wherever_anybody_can_be(drawn: Drawn) -> None:
    """Also where precautions differ, and so being due first is not being late first."""
    transfers, last_ms, uplink_mbps = drawn
    order = sorted(range(len(transfers)), key=lambda i: (transfers[i].due_in_ms, transfers[i].request_id))
    alone = [i for i in order if transfers[i].bytes_left <= uplink_mbps * BYTES_PER_MS * last_ms[i]]
    ends_ms = through_ms(transfers, last_ms, uplink_mbps)
    in_time = [i for i in order if ends_ms[i] <= last_ms[i] * (1 + 1e-9) + 1e-3]
    assert bool(in_time) == bool(alone)


@given(shared(), st.lists(st.integers(0, 2), min_size=7, max_size=7))
def test_transfers_of_one_agent_share_its_grant(drawn: Drawn, agents: list[int]) -> None:
    transfers, last_ms, uplink_mbps = drawn
    each = share_by_due(transfers, last_ms, uplink_mbps)
    together = share_by_due([t._replace(agent_id=agents[i]) for i, t in enumerate(transfers)], last_ms, uplink_mbps)
    for agent_id, mbps in together.items():
        own = sum(each[t.agent_id] for i, t in enumerate(transfers) if agents[i] == agent_id)
        assert mbps == pytest.approx(own, rel=1e-9, abs=1e-9 * uplink_mbps)


@given(fitting(), st.floats(0.01, 0.99))
def test_grants_stay_as_they_are_while_time_passes(drawn: Drawn, part: float) -> None:
    transfers, last_ms, uplink_mbps = drawn
    grants = share_by_due(transfers, last_ms, uplink_mbps)
    bytes_per_ms = {t.agent_id: grants[t.agent_id] * BYTES_PER_MS for t in transfers}
    first_ms = min(t.bytes_left / bytes_per_ms[t.agent_id] for t in transfers if bytes_per_ms[t.agent_id] > 0)
    passed_ms = part * first_ms
    carried = [
        t._replace(bytes_left=t.bytes_left - bytes_per_ms[t.agent_id] * passed_ms, due_in_ms=t.due_in_ms - passed_ms)
        for t in transfers
    ]
    later = share_by_due(carried, [last - passed_ms for last in last_ms], uplink_mbps)
    # What nobody needs may pass to another, which has the least left now.
    least_bytes = min(t.bytes_left for t in carried)
    for before, t in zip(transfers, carried, strict=True):
        if grants[t.agent_id] == before.least_mbps:
            assert later[t.agent_id] >= grants[t.agent_id] - 1e-6 * uplink_mbps
            if t.bytes_left > least_bytes + SAME_BYTES:
                assert later[t.agent_id] == pytest.approx(grants[t.agent_id], rel=1e-6, abs=1e-6 * uplink_mbps)


def test_what_nobody_needs_goes_to_who_has_the_least_left() -> None:
    transfers = [transfer(1, 500_000, 1000.0), transfer(2, 100_000, 2000.0), transfer(3, 100_000.5, 500.0)]
    grants = share_by_due(transfers, [1000.0, 2000.0, 500.0], 20.0)
    needs = {t.agent_id: t.least_mbps for t in transfers}
    assert grants[1] == needs[1] and grants[3] == needs[3]
    assert grants[2] == pytest.approx(20.0 - needs[1] - needs[3])


# What a new request sees.


def option(wire_bytes: int, edge_ms: float = 0.0, cloud_ms: float = 0.0) -> ModeOption:
    return ModeOption(parse_mode(f"m{wire_bytes}"), wire_bytes, edge_ms, cloud_ms, 90.0)


def asking(time_left_ms: float, *options: ModeOption) -> Request:
    return Request(99, 99, time_left_ms, options)


sizes_and_times = st.lists(st.tuples(st.integers(1, 5_000_000), st.floats(-500, 20_000)), max_size=7)


@given(sizes_and_times, uplinks_mbps, st.floats(-500, 20_000), st.floats(0, 500), st.floats(0, 500))
def test_a_newcomer_sees_no_more_than_the_uplink(
    sent: list[tuple[int, float]], uplink_mbps: float, time_left_ms: float, edge_ms: float, cloud_ms: float
) -> None:
    transfers = tuple(transfer(i, size, due_ms) for i, (size, due_ms) in enumerate(sent))
    request = asking(time_left_ms, option(1000), option(5000, edge_ms, cloud_ms))
    problem = Problem(uplink_mbps, (), (request,), transfers, (3.0,), "late")
    left = beside_transfers(problem)
    assert 0 < left.uplink_mbps <= uplink_mbps
    assert left == replace(problem, uplink_mbps=left.uplink_mbps, transfers=()), "nothing else changes"
    if not transfers:
        assert left == problem
    more = beside_transfers(replace(problem, transfers=(*transfers, transfer(50, 1000, 100.0))))
    assert more.uplink_mbps <= left.uplink_mbps, "more transfers never leave more"


def test_without_requests_there_is_nothing_to_leave() -> None:
    problem = Problem(50.0, (), (), (transfer(1, 1e6, 100.0),))
    assert beside_transfers(problem) == replace(problem, transfers=())


def test_what_is_due_later_can_wait() -> None:
    request = asking(1000.0, option(10_000))
    soon, late = (
        beside_transfers(Problem(8.0, (), (request,), (transfer(1, 500_000, due_ms),))).uplink_mbps
        for due_ms in (500.0, 2000.0)
    )
    assert soon == pytest.approx(8.0 - 4.0), "through within the second, which takes half of it"
    assert late == pytest.approx(8.0 - 2.0)


@st.composite
def before_a_newcomer(draw: st.DrawFn) -> tuple[list[Transfer], float, float]:
    """Transfers that can be in time, the uplink, and a time by which all of them are due."""
    transfers, last_ms, uplink_mbps = draw(fitting())
    # Shifted, since what is sent in order of due time is in time only if nothing is due before it can be through.
    due = [t._replace(due_in_ms=max(last, 1.0)) for t, last in zip(transfers, last_ms, strict=True)]
    assume(fits(due, [t.due_in_ms for t in due], uplink_mbps))
    until_ms = max(t.due_in_ms for t in due) + draw(st.sampled_from([0.0, 1.0, 500.0]))
    return due, uplink_mbps, until_ms


@given(before_a_newcomer(), st.floats(0.01, 1.0), st.floats(0, 300), st.floats(0, 300))
def test_what_is_admitted_beside_transfers_is_in_time_with_them(
    drawn: tuple[list[Transfer], float, float], part: float, edge_ms: float, cloud_ms: float
) -> None:
    transfers, uplink_mbps, until_ms = drawn
    time_left_ms = until_ms + edge_ms + cloud_ms
    largest = option(1, edge_ms, cloud_ms)
    problem = Problem(uplink_mbps, (), (asking(time_left_ms, largest),), tuple(transfers))
    left_mbps = beside_transfers(problem).uplink_mbps
    assume(left_mbps > NOTHING_MBPS)
    admitted = option(int(part * left_mbps * BYTES_PER_MS * until_ms), edge_ms, cloud_ms)
    assume(admitted.wire_bytes > 0)
    assert admitted.least_mbps(time_left_ms) <= left_mbps * (1 + 1e-9)
    together = [*transfers, transfer(99, admitted.wire_bytes, until_ms)]
    last_ms = [t.due_in_ms for t in together]
    a_byte_ms = 1 / (uplink_mbps * BYTES_PER_MS)
    for end_ms, latest_ms in zip(through_ms(together, last_ms, uplink_mbps), last_ms, strict=True):
        assert end_ms <= latest_ms * (1 + 1e-9) + len(together) * a_byte_ms * SAME_BYTES
