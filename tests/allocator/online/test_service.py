"""The allocator serves one by one, touches only grants that change, and keeps its picture of uplink and cloud true."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.estimators import Ewma, Fixed
from allocator.online.service import LEAST_GRANT_MBPS, LEAST_LEFT, Allocator, Decision, NoWorkerAlive, Rules
from allocator.policies import make_policy
from allocator.problem import AgentInfo, Assignment, ModeOption, Problem, Request, Solution, Transfer
from cloud.dispatch import LeastLoaded
from kvcache.modes import parse_mode
from tests.support.virtual import virtually

SEND = ModeOption(parse_mode("int8"), 100_000, 0, 100, 99)
LOCAL = ModeOption(parse_mode("local"), 0, 10, 0, 75)


class RecordingLink:
    def __init__(self) -> None:
        self.calls: list[dict[int, float]] = []

    async def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        self.calls.append(dict(grants_mbps))


def make(policy: str = "equal") -> tuple[Allocator, RecordingLink]:
    link = RecordingLink()
    agents = [AgentInfo(0, 10), AgentInfo(1, 30)]
    return Allocator(agents, make_policy(policy), Ewma(alpha=0.5, safety=1.0), LeastLoaded(2), link), link


async def test_grants_follow_the_estimate_and_are_only_touched_when_they_change() -> None:
    allocator, link = make("model_aware")
    await allocator.report(40)
    assert link.calls == [{0: 10, 1: 30}]
    decision = await allocator.assign(Request(1, 1, 1000, (SEND,)))
    assert decision.assignment.grant_mbps == 30 and decision.estimate_mbps == 40
    await allocator.peek(80)  # causal: the new rate is not known yet
    assert len(link.calls) == 1
    await allocator.report(80)
    assert link.calls[1:] == [{0: 15, 1: 45}]


async def test_workers_are_loaded_evenly_and_released() -> None:
    allocator, _ = make()
    await allocator.report(40)
    first = await allocator.assign(Request(1, 0, 1000, (SEND,)))
    second = await allocator.assign(Request(2, 1, 1000, (SEND,)))
    assert {first.worker, second.worker} == {0, 1}
    allocator.finish(2)
    allocator.finish(2)
    third = await allocator.assign(Request(3, 1, 1000, (SEND,)))
    assert third.worker == second.worker
    local = await allocator.assign(Request(4, 1, 1000, (LOCAL,)))
    assert local.worker == -1
    assert len(allocator.solve_times_ms()) == 5


async def test_giving_up_while_being_assigned_leaves_no_load_behind() -> None:
    allocator, _ = make()
    await allocator.report(40)
    assigning = asyncio.create_task(allocator.assign(Request(1, 0, 1000, (SEND,))))
    await asyncio.sleep(0)
    allocator.finish(1)
    first = await assigning
    again = await allocator.assign(Request(2, 0, 1000, (SEND,)))
    assert again.worker == first.worker, "the least loaded one: nothing is left of the first"


class Stub:
    """Gives every request its first option and everybody who sends 10 Mbit/s; remembers the problems."""

    name = "stub"

    def __init__(self, standing: bool = False) -> None:
        self.standing = standing
        self.by_need = False
        self.problems: list[Problem] = []
        self.grant_mbps = 10.0

    def solve(self, problem: Problem) -> Solution:
        self.problems.append(problem)
        mbps = self.grant_mbps
        agents = {each.agent_id for each in (*problem.requests, *problem.transfers)}
        return Solution(
            {r.request_id: Assignment(r.request_id, r.options[0].mode, mbps, 1.0, True) for r in problem.requests},
            dict.fromkeys(agents, mbps),
        )

    @property
    def last(self) -> Problem:
        return self.problems[-1]

    def transfer(self, request_id: int) -> Transfer:
        """As the last problem has it."""
        return next(t for t in self.last.transfers if t.request_id == request_id)


CACHE = ModeOption(parse_mode("full"), 1_000_000, 0, 100, 100)
AGENTS = [AgentInfo(number, 1) for number in range(4)]


def stubbed(
    rules: Rules | None = None, standing: bool = False, workers: int = 2
) -> tuple[Allocator, Stub, RecordingLink]:
    policy, link = Stub(standing), RecordingLink()
    allocator = Allocator(AGENTS, policy, Fixed(mbps=100), LeastLoaded(workers), link, rules)
    return allocator, policy, link


def request(number: int, option: ModeOption = CACHE, left_ms: float = 5000, starts_in_ms: float = 0.0) -> Request:
    """Of the agent of the same number."""
    return Request(number, number, left_ms, (option,), 1.0, starts_in_ms)


def test_what_a_transfer_has_left_falls_with_its_grant_and_time() -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed()
        await allocator.assign(request(1))
        await allocator.assign(request(2, ModeOption(parse_mode("int8"), 1_000_000, 100, 50, 99)))
        assert policy.transfer(1) == Transfer(1, 1, 1_000_000, 4900)
        await asyncio.sleep(0.4)
        await allocator.peek(1)
        assert policy.transfer(1).bytes_left == pytest.approx(500_000)
        assert policy.transfer(1).due_in_ms == pytest.approx(4500)
        assert policy.transfer(2).bytes_left == pytest.approx(625_000), "it could start only after 100 ms of encoding"
        policy.grant_mbps = 5
        await allocator.peek(1)  # from now on
        await asyncio.sleep(0.2)
        await allocator.peek(1)
        assert policy.transfer(1).bytes_left == pytest.approx(375_000)
        await asyncio.sleep(60)
        await allocator.peek(1)
        assert policy.transfer(1).bytes_left == pytest.approx(LEAST_LEFT * 1_000_000), "until the cloud says otherwise"
        assert policy.transfer(1).due_in_ms < 0 and policy.transfer(1).least_mbps == float("inf")

    virtually(main)


@pytest.mark.parametrize("policy", ["deadline", "equal", "static_full"])
def test_lost_workers_get_no_requests(policy: str) -> None:
    """With no worker left a request is answered on its edge, or fails with a reason, whatever the policy chose."""

    async def main() -> None:
        allocator = Allocator(AGENTS, make_policy(policy), Fixed(mbps=100), LeastLoaded(2), RecordingLink())
        await allocator.report(100)
        local = ModeOption(parse_mode("local"), 0, 700, 0, 90)

        async def asked(number: int, *options: ModeOption) -> Decision:
            return await allocator.assign(Request(number, number % 4, 5000, options))

        assert [(await asked(number, CACHE, local)).worker for number in (0, 1)] == [0, 1]
        allocator.received(0)
        allocator.worker_lost(1)
        assert [(await asked(number, CACHE, local)).worker for number in (2, 3)] == [0, 0]
        assert allocator.snapshot().in_flight == 3, "those to the lost worker too, until their agents finish them"
        allocator.worker_lost(0)
        decision = await asked(4, CACHE, local)
        assert (decision.worker, decision.assignment.mode, decision.assignment.grant_mbps) == (
            -1,
            parse_mode("local"),
            0,
        )
        assert decision.assignment.predicted_ms == 700
        with pytest.raises(NoWorkerAlive, match="no cloud worker is alive"):
            await asked(5, CACHE)
        for number in range(6):
            allocator.finish(number, gave_up=True)
        assert allocator.snapshot().in_flight == 0
        allocator.worker_restored(1)
        assert (await asked(6, CACHE, local)).worker == 1
        assert allocator.snapshot().cloud_ms == (float("inf"), 100)

    virtually(main)


def test_a_transfer_isn_t_due_sooner_for_what_its_edge_has_still_to_do() -> None:
    """Due times count from when bytes can flow, as those of requests do."""

    async def main() -> None:
        allocator, policy, _ = stubbed()
        await allocator.assign(request(1, ModeOption(parse_mode("int8"), 1_000_000, 400, 100, 99)))
        await asyncio.sleep(0.1)
        await allocator.peek(1)
        assert policy.transfer(1).due_in_ms == pytest.approx(5000 - 400 - 100)
        assert policy.transfer(1).bytes_left == 1_000_000

    virtually(main)


def test_what_the_uplink_can_t_have_carried_is_put_back() -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed()
        await allocator.report(100)
        await allocator.assign(request(1, ModeOption(parse_mode("full"), 2_000_000, 0, 100, 100)))
        await allocator.assign(request(2, ModeOption(parse_mode("full"), 4_000_000, 500, 100, 100)))
        await asyncio.sleep(1)
        await allocator.report(9)  # 1.125 MB, where 1.25 and 0.625 were granted
        assert policy.transfer(1).bytes_left == pytest.approx(2_000_000 - 0.6 * 1_250_000)
        assert policy.transfer(2).bytes_left == pytest.approx(4_000_000 - 0.6 * 625_000)
        await asyncio.sleep(1)
        await allocator.report(50)  # more than was granted: nothing is put back, nor taken
        assert policy.transfer(1).bytes_left == pytest.approx(2_000_000 - 0.6 * 1_250_000 - 1_190_000, abs=10_001)
        assert policy.transfer(2).bytes_left == pytest.approx(4_000_000 - 0.6 * 625_000 - 1_250_000)

    virtually(main)


def test_departures_fit_grants_anew_once_for_all_that_leave_at_a_moment() -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed()
        for number in range(4):
            await allocator.assign(request(number))
        allocator.received(0)
        allocator.received(1)
        allocator.finish(2)
        assert len(policy.problems) == 4
        await asyncio.sleep(0.1)
        assert len(policy.problems) == 5 and policy.last.requests == ()
        assert [t.request_id for t in policy.last.transfers] == [3]
        allocator.finish(0)
        allocator.finish(1)
        allocator.received(3)
        await asyncio.sleep(0.1)
        assert len(policy.problems) == 5, "who left before can't leave again, and the last leaves nobody"

    virtually(main)


def test_standing_policies_are_asked_only_about_requests_and_the_uplink() -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed(standing=True)
        await allocator.report(1)
        allocator.announce(request(3, starts_in_ms=10))
        for number in range(2):
            await allocator.assign(request(number))
        allocator.received(0)
        allocator.finish(0)
        await asyncio.sleep(0.1)
        assert [len(problem.requests) for problem in policy.problems] == [0, 1, 1]
        assert all(p.transfers == () and p.workers_free_in_ms is None for p in policy.problems)

    virtually(main)


def test_announced_requests_count_until_they_ask() -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed()
        allocator.announce(request(1, starts_in_ms=200))
        allocator.announce(request(2, starts_in_ms=100))
        assert policy.problems == [], "an announcement decides nothing"
        await asyncio.sleep(0.05)
        await allocator.assign(request(0))
        announced = {r.request_id: r for r in policy.last.requests if r.starts_in_ms > 0}
        assert set(announced) == {1, 2}
        assert (announced[1].starts_in_ms, announced[1].time_left_ms) == pytest.approx((150, 5000))
        await asyncio.sleep(0.2)
        await allocator.assign(request(2))
        announced = {r.request_id: r for r in policy.last.requests if r.request_id != 2}
        assert set(announced) == {1} and announced[1].starts_in_ms > 0, "late in asking, but not here yet"
        assert announced[1].time_left_ms == pytest.approx(4950, abs=0.01)
        allocator.finish(1)
        await allocator.assign(request(3))
        assert [r.request_id for r in policy.last.requests] == [3]

    virtually(main)


def test_answers_are_planned_a_margin_earlier() -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed(Rules(margin_ms=50))
        allocator.announce(request(1, starts_in_ms=200))
        await allocator.assign(request(0))
        assert [r.time_left_ms for r in policy.last.requests] == pytest.approx([4950, 4950])
        await allocator.assign(request(2))
        assert policy.transfer(0).due_in_ms == pytest.approx(4850)

    virtually(main)


@pytest.mark.parametrize("cloud_time", [True, False])
def test_cloud_time_is_in_the_problem_where_it_is_wanted(cloud_time: bool) -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed(Rules(cloud_time=cloud_time))
        await allocator.assign(request(0))
        await allocator.assign(request(1))
        await allocator.assign(request(2))
        expected = (100, 100) if cloud_time else None
        assert policy.last.workers_free_in_ms == expected

    virtually(main)


deadlines_ms = st.lists(st.integers(500, 900), min_size=4, max_size=4)
cloud_ms = st.lists(st.integers(0, 200), min_size=4, max_size=4)


@given(deadlines_ms, cloud_ms, st.booleans())
def test_transfers_that_share_a_worker_are_due_one_after_the_other(
    deadlines: list[int], costs: list[int], cloud_time: bool
) -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed(Rules(cloud_time=cloud_time), workers=1)
        for number, (deadline_ms, cost_ms) in enumerate(zip(deadlines, costs, strict=True)):
            await allocator.assign(
                request(number, ModeOption(parse_mode("full"), 1_000_000, 0, cost_ms, 100), deadline_ms)
            )
        await allocator.peek(1)
        due_ms = {t.request_id: t.due_in_ms for t in policy.last.transfers}
        alone_ms = {number: deadlines[number] - costs[number] for number in range(4)}
        if not cloud_time:
            assert due_ms == pytest.approx(alone_ms)
            return
        assert all(due_ms[number] <= alone_ms[number] + 1e-6 for number in range(4))
        assert max(due_ms.values()) == pytest.approx(
            max(alone_ms[n] for n in range(4) if due_ms[n] == max(due_ms.values()))
        )
        ends_ms = -float("inf")
        for number in sorted(range(4), key=lambda number: (deadlines[number], number)):
            ends_ms = max(ends_ms, due_ms[number]) + costs[number]
            assert ends_ms <= deadlines[number] + 1e-6, "served as they are due, all are in time"

    virtually(main)


def test_grants_that_don_t_change_are_not_touched() -> None:
    async def main() -> None:
        allocator, policy, link = stubbed()
        await allocator.assign(request(0))
        await allocator.assign(request(1))
        policy.grant_mbps = 10.005  # a twentieth of a percent
        await allocator.peek(1)
        assert link.calls == [{0: 10}, {1: 10}]
        policy.grant_mbps = 10.1
        await allocator.peek(1)
        assert link.calls[2:] == [{0: 10.1, 1: 10.1}]

    virtually(main)


@pytest.mark.parametrize(("standing", "grants"), [(False, LEAST_GRANT_MBPS), (True, 0.01)])
def test_no_grant_that_may_change_is_near_zero(standing: bool, grants: float) -> None:
    """It would keep its agent waiting after it was raised; a standing share is what its policy says."""

    async def main() -> None:
        allocator, policy, link = stubbed(standing=standing)
        policy.grant_mbps = 0.01
        await allocator.assign(request(0))
        assert link.calls == [{0: grants}]

    virtually(main)


class SlowLink(RecordingLink):
    """Knows all grants, and takes a while for each change."""

    def __init__(self) -> None:
        super().__init__()
        self.grants_mbps: dict[int, float] = {}

    async def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        self.grants_mbps |= grants_mbps
        await asyncio.sleep(0.003)


OPTIONS = (
    CACHE,
    ModeOption(parse_mode("int4"), 250_000, 3, 100, 90),
    ModeOption(parse_mode("prompt"), 500, 0, 150, 80),
    ModeOption(parse_mode("local"), 0, 300, 0, 60),
)
events = st.lists(
    st.tuples(
        st.sampled_from(["announce", "assign", "received", "finish", "report", "wait"]),
        st.integers(0, 7),
        st.floats(0.1, 60),
    ),
    max_size=40,
)


@pytest.mark.parametrize("policy", ["equal", "deadline", "greedy", "quality_max"])
@settings(max_examples=30, deadline=None)
@given(taken=events, rules=st.sampled_from([Rules(), Rules(20, False, "late", True), Rules(20, True, "local", True)]))
def test_whatever_happens_nothing_is_left_behind(
    policy: str, taken: list[tuple[str, int, float]], rules: Rules
) -> None:
    async def main() -> None:
        link, dispatcher = SlowLink(), LeastLoaded(2)
        allocator = Allocator(AGENTS, make_policy(policy), Ewma(), dispatcher, link, rules)
        await allocator.report(20)
        assigning: dict[int, asyncio.Task[Any]] = {}
        ended: set[int] = set()
        for what, number, amount in taken:
            if what == "announce" and number not in assigning.keys() | ended:
                allocator.announce(Request(number, number % 4, 1500, OPTIONS, 1.0, amount))
            elif what == "assign" and number not in assigning.keys() | ended:
                asking = Request(number, number % 4, 1500 - amount, OPTIONS)
                assigning[number] = asyncio.create_task(allocator.assign(asking))
                await asyncio.sleep(0)  # asked, but maybe not answered yet
            elif what == "received" and number in assigning:
                allocator.received(number)
            elif what == "finish":
                allocator.finish(number)
                ended.add(number)
            elif what == "report":
                await allocator.report(amount)
            elif what == "wait":
                await asyncio.sleep(amount / 100)
        for number in range(8):
            allocator.finish(number)
        if assigning:
            for asked in (await asyncio.wait(assigning.values()))[0]:
                decision = asked.result()
                assert (decision.worker >= 0) == (not decision.assignment.mode.is_local)
        await asyncio.sleep(1)
        assert dispatcher.free_in_ms() == (0, 0)
        assert (allocator._waiting, allocator._sending, allocator._regranting) == ({}, {}, None)
        assert all(mbps >= 0 for mbps in link.grants_mbps.values())
        asked = await allocator.assign(Request(99, 0, 60_000, OPTIONS))
        assert asked.assignment.meets and asked.worker == 0

    virtually(main)


@pytest.mark.parametrize("policy", ["deadline", "greedy", "optimal"])
def test_grants_in_force_never_add_up_to_more_than_is_believed(policy: str) -> None:
    async def main() -> None:
        link = SlowLink()
        allocator = Allocator(AGENTS, make_policy(policy), Ewma(safety=1.0), LeastLoaded(4), link)
        for turn, mbps in enumerate([20, 5, 40, 0.5, 30]):
            await allocator.report(mbps)
            for agent in range(4):
                await allocator.assign(Request(10 * turn + agent, agent, 1500, OPTIONS))
                sending = {sending.agent_id for sending in allocator._sending.values()}
                assert sum(link.grants_mbps[a] for a in sending) <= allocator._estimate_mbps * 1.002
                await asyncio.sleep(0.05)
            for agent in range(4):
                allocator.received(10 * turn + agent)
                await asyncio.sleep(0.05)
                sending = {sending.agent_id for sending in allocator._sending.values()}
                assert sum(link.grants_mbps[a] for a in sending) <= allocator._estimate_mbps * 1.002
            assert not allocator._sending

    virtually(main)
