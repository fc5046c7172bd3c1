"""The allocator serves one by one, touches only grants that change, and keeps its picture of uplink and cloud true."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.estimators import Ewma, Fixed
from allocator.online.service import Allocator, NoWorkerAlive, Rules
from allocator.online.transfers import LEAST_LEFT
from allocator.policies import make_policy
from allocator.problem import AgentInfo, Choice, ModeOption, Plan, Problem, Solution, Transfer
from allocator.sharing import LEAST_GRANT_MBPS, LEAST_SHARE
from cloud.dispatch import LeastLoaded
from tests.support.allocators import AGENTS, CACHE, RecordingLink, now_s, request
from tests.support.options import option
from tests.support.virtual import virtually

SEND = option("int8", 100_000, 0, 100, 99)
LOCAL = option("local", 0, 10, 0, 75)


def make(policy: str = "equal") -> tuple[Allocator, RecordingLink]:
    link = RecordingLink()
    agents = [AgentInfo(0, 10), AgentInfo(1, 30)]
    return Allocator(agents, make_policy(policy), Ewma(alpha=0.5, safety=1.0), LeastLoaded(2), link), link


async def test_grants_follow_the_estimate_and_are_only_touched_when_they_change() -> None:
    allocator, link = make("model_aware")
    await allocator.report(40)
    assert link.calls == [{0: 10, 1: 30}]
    plan = await allocator.assign(request(1, SEND))
    assert plan.grant_mbps == 30 and plan.estimate_mbps == 40
    await allocator.peek(80)  # causal: the new rate is not known yet
    assert len(link.calls) == 1
    await allocator.report(80)
    assert link.calls[1:] == [{0: 15, 1: 45}]


async def test_workers_are_loaded_evenly_and_released() -> None:
    allocator, _ = make()
    await allocator.report(40)
    first = await allocator.assign(request(1, SEND, agent_id=0))
    second = await allocator.assign(request(2, SEND, agent_id=1))
    assert {first.worker, second.worker} == {0, 1}
    allocator.finish(2)
    allocator.finish(2)
    third = await allocator.assign(request(3, SEND, agent_id=1))
    assert third.worker == second.worker
    local = await allocator.assign(request(4, LOCAL, agent_id=1))
    assert local.worker == -1
    assert len(allocator.solve_times_ms()) == 5


async def test_giving_up_while_being_assigned_leaves_no_load_behind() -> None:
    allocator, _ = make()
    await allocator.report(40)
    assigning = asyncio.create_task(allocator.assign(request(1, SEND, agent_id=0)))
    await asyncio.sleep(0)
    allocator.finish(1)
    first = await assigning
    again = await allocator.assign(request(2, SEND, agent_id=0))
    assert again.worker == first.worker, "the least loaded one: nothing is left of the first"


class Stub:
    """Gives every request its first option and everybody who sends 10 Mbit/s; remembers the problems."""

    name = "stub"
    minimum_rate = False

    def __init__(self, static_shares: bool = False) -> None:
        self.static_shares = static_shares
        self.problems: list[Problem] = []
        self.grant_mbps = 10.0

    def solve(self, problem: Problem) -> Solution:
        self.problems.append(problem)
        agents = {each.agent_id for each in (*problem.requests, *problem.transfers)}
        choices = {r.request_id: Choice(r.options[0], True) for r in problem.requests}
        return Solution(choices, dict.fromkeys(agents, self.grant_mbps))

    @property
    def last(self) -> Problem:
        return self.problems[-1]

    def transfer(self, request_id: int) -> Transfer:
        """As the last problem has it."""
        return next(t for t in self.last.transfers if t.request_id == request_id)


def stubbed(
    rules: Rules | None = None, static_shares: bool = False, workers: int = 2
) -> tuple[Allocator, Stub, RecordingLink]:
    policy, link = Stub(static_shares), RecordingLink()
    allocator = Allocator(AGENTS, policy, Fixed(mbps=100), LeastLoaded(workers), link, rules)
    return allocator, policy, link


def test_what_a_transfer_has_left_falls_with_its_grant_and_time() -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed()
        await allocator.assign(request(1))
        await allocator.assign(request(2, option("int8", 1_000_000, 100, 50, 99)))
        transfer = policy.transfer(1)
        assert (transfer.agent_id, transfer.bytes_left) == (1, 1_000_000)
        assert transfer.due_s == transfer.late_s == pytest.approx(4.9)
        await asyncio.sleep(0.4)
        await allocator.peek(1)
        assert policy.transfer(1).bytes_left == pytest.approx(500_000)
        assert policy.transfer(1).due_s == pytest.approx(4.9)
        assert policy.transfer(1).least_mbps(now_s()) == pytest.approx(4 / 4.5)
        assert policy.transfer(2).bytes_left == pytest.approx(625_000), "it could start only after 100 ms of encoding"
        policy.grant_mbps = 5
        await allocator.peek(1)  # from now on
        await asyncio.sleep(0.2)
        await allocator.peek(1)
        assert policy.transfer(1).bytes_left == pytest.approx(375_000)
        await asyncio.sleep(60)
        await allocator.peek(1)
        assert policy.transfer(1).bytes_left == pytest.approx(LEAST_LEFT * 1_000_000), "until the cloud says otherwise"
        assert policy.transfer(1).due_s < now_s() and policy.transfer(1).least_mbps(now_s()) == float("inf")

    virtually(main)


@pytest.mark.parametrize("policy", ["deadline", "equal", "static_full"])
def test_lost_workers_get_no_requests(policy: str) -> None:
    """With no worker left a request is answered on its edge, or fails with a reason, whatever the policy chose."""

    async def main() -> None:
        allocator = Allocator(AGENTS, make_policy(policy), Fixed(mbps=100), LeastLoaded(2), RecordingLink())
        await allocator.report(100)
        local = option("local", 0, 700, 0, 90)

        async def asked(number: int, *options: ModeOption) -> Plan:
            return await allocator.assign(request(number, *options, agent_id=number % 4))

        assert [(await asked(number, CACHE, local)).worker for number in (0, 1)] == [0, 1]
        allocator.received(0)
        allocator.worker_lost(1)
        assert [(await asked(number, CACHE, local)).worker for number in (2, 3)] == [0, 0]
        assert allocator.snapshot().in_flight == 3, "those to the lost worker too, until their agents finish them"
        allocator.worker_lost(0)
        plan = await asked(4, CACHE, local)
        assert (plan.worker, plan.option, plan.grant_mbps) == (-1, local, 0)
        assert plan.ready_s == pytest.approx(now_s() + 0.7)
        with pytest.raises(NoWorkerAlive, match="no cloud worker is alive"):
            await asked(5, CACHE)
        for number in range(6):
            allocator.finish(number, gave_up=True)
        assert allocator.snapshot().in_flight == 0
        allocator.worker_restored(1)
        assert (await asked(6, CACHE, local)).worker == 1
        assert allocator.snapshot().cloud_ms == (float("inf"), 100)

    virtually(main)


class Doubtful(Fixed):
    """An uplink of the fixed rate, or of hardly any."""

    def spread(self, intervals: float = 1.0) -> list[float]:
        return [0.5, self.mbps, self.mbps, self.mbps]


def test_nothing_goes_ahead_of_an_answer_on_the_edge() -> None:
    """A plan that falls back to the edge because no worker is alive has no hedge, whatever the policy planned."""

    async def main() -> None:
        prompt, local = option("prompt", 500, 0, 150, 80), option("local", 0, 700, 0, 60)
        policy, estimator = make_policy("static_full"), Doubtful(mbps=100)
        allocator = Allocator(AGENTS, policy, estimator, LeastLoaded(1), RecordingLink(), Rules(hedge=True))
        await allocator.report(100)
        plan = await allocator.assign(request(0, CACHE, prompt, local))
        assert (plan.option, plan.hedge) == (CACHE, prompt)
        allocator.worker_lost(0)
        plan = await allocator.assign(request(1, CACHE, prompt, local))
        assert (plan.option, plan.hedge) == (local, None)

    virtually(main)


def test_a_transfer_isn_t_due_sooner_for_what_its_edge_has_still_to_do() -> None:
    """Its least rate counts from when bytes can flow, as those of requests do."""

    async def main() -> None:
        allocator, policy, _ = stubbed()
        await allocator.assign(request(1, option("int8", 1_000_000, 400, 100, 99)))
        await asyncio.sleep(0.1)
        await allocator.peek(1)
        assert policy.transfer(1).due_s == pytest.approx(4.9)
        assert policy.transfer(1).least_mbps(now_s()) == pytest.approx(8 / 4.5)
        assert policy.transfer(1).bytes_left == 1_000_000

    virtually(main)


def test_what_the_uplink_can_t_have_carried_is_put_back() -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed()
        await allocator.report(100)
        await allocator.assign(request(1, option("full", 2_000_000, 0, 100, 100)))
        await allocator.assign(request(2, option("full", 4_000_000, 500, 100, 100)))
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


def test_policies_of_static_shares_are_asked_only_about_requests_and_the_uplink() -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed(static_shares=True)
        await allocator.report(1)
        allocator.announce(request(3, starts_in_ms=10))
        for number in range(2):
            await allocator.assign(request(number))
        allocator.received(0)
        allocator.finish(0)
        await asyncio.sleep(0.1)
        assert [len(problem.requests) for problem in policy.problems] == [0, 1, 1]
        assert all(p.transfers == () and p.workers_free_s is None for p in policy.problems)

    virtually(main)


def test_announced_requests_count_until_they_ask() -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed()
        allocator.announce(request(1, starts_in_ms=200))
        allocator.announce(request(2, starts_in_ms=100))
        assert policy.problems == [], "an announcement decides nothing"
        await asyncio.sleep(0.05)
        await allocator.assign(request(0))
        announced = {r.request_id: r for r in policy.last.requests if r.starts_s > now_s()}
        assert set(announced) == {1, 2}
        assert policy.last.starts_in_ms(announced[1]) == pytest.approx(150)
        assert policy.last.time_left_ms(announced[1]) == pytest.approx(5000)
        await asyncio.sleep(0.2)
        await allocator.assign(request(2))
        announced = {r.request_id: r for r in policy.last.requests if r.request_id != 2}
        assert set(announced) == {1} and announced[1].starts_s > now_s(), "late in asking, but not here yet"
        assert policy.last.time_left_ms(announced[1]) == pytest.approx(4950, abs=0.01)
        allocator.finish(1)
        await allocator.assign(request(3))
        assert [r.request_id for r in policy.last.requests] == [3]

    virtually(main)


def test_transfers_are_due_a_margin_before_they_are_late() -> None:
    """The request says when its answer is planned to be there; the allocator takes nothing more off."""

    async def main() -> None:
        allocator, policy, _ = stubbed()
        allocator.announce(request(1, starts_in_ms=200))
        await allocator.assign(replace(request(0), margin_s=0.05))
        assert [policy.last.time_left_ms(r) for r in policy.last.requests] == pytest.approx([5000, 5000])
        await allocator.assign(request(2))
        assert policy.transfer(0).due_s == pytest.approx(4.9)
        assert policy.transfer(0).late_s == pytest.approx(4.95)

    virtually(main)


@pytest.mark.parametrize("cloud_time", [True, False])
def test_cloud_time_is_in_the_problem_where_it_is_wanted(cloud_time: bool) -> None:
    async def main() -> None:
        allocator, policy, _ = stubbed(Rules(cloud_time=cloud_time))
        await allocator.assign(request(0))
        await allocator.assign(request(1))
        await allocator.assign(request(2))
        assert policy.last.workers_free_s == ((0.1, 0.1) if cloud_time else None)

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
            await allocator.assign(request(number, option("full", 1_000_000, 0, cost_ms, 100), left_ms=deadline_ms))
        await allocator.peek(1)
        due_ms = {t.request_id: t.due_s * 1e3 for t in policy.last.transfers}
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


@pytest.mark.parametrize(("static_shares", "grants"), [(False, LEAST_GRANT_MBPS), (True, 0.01)])
def test_no_grant_that_may_change_is_near_zero(static_shares: bool, grants: float) -> None:
    """It would keep its agent waiting after it was raised; a static share is as its policy says."""

    async def main() -> None:
        allocator, policy, link = stubbed(static_shares=static_shares)
        policy.grant_mbps = 0.01
        await allocator.assign(request(0))
        assert link.calls == [{0: grants}]

    virtually(main)


def test_on_a_fast_uplink_the_least_grant_is_a_share_of_it() -> None:
    async def main() -> None:
        allocator, policy, link = stubbed()
        await allocator.peek(100)
        policy.grant_mbps = 0.01
        await allocator.assign(request(0))
        assert link.calls[-1] == {0: LEAST_SHARE * 100}

    virtually(main)


class InPlace:
    """Updates the one mapping of grants that it has given away long ago."""

    name = "in_place"
    minimum_rate = False

    def __init__(self, static_shares: bool) -> None:
        self.static_shares = static_shares
        self.grants_mbps: dict[int, float] = {}

    def solve(self, problem: Problem) -> Solution:
        for agent in problem.agents:
            self.grants_mbps[agent.agent_id] = problem.uplink_mbps / len(problem.agents)
        return Solution({r.request_id: Choice(r.options[0], True) for r in problem.requests}, self.grants_mbps)


@pytest.mark.parametrize("static_shares", [True, False])
def test_grants_that_a_policy_updates_in_place_get_through(static_shares: bool) -> None:
    """Grants are compared by value. Fails on commit 06bf9f5, which compared mappings by identity (fact D4)."""

    async def main() -> None:
        link = RecordingLink()
        estimator = Ewma(alpha=1.0, safety=1.0)
        allocator = Allocator(AGENTS, InPlace(static_shares), estimator, LeastLoaded(2), link)
        await allocator.report(40)
        plan = await allocator.assign(request(0))
        assert plan.grant_mbps == 10
        for mbps in (80, 20, 20, 60):
            await allocator.report(mbps)
        assert link.calls == [dict.fromkeys(range(4), mbps) for mbps in (10, 20, 5, 15)]
        assert (await allocator.assign(request(1))).grant_mbps == 15

    virtually(main)


def test_what_a_connection_can_t_carry_in_time_isn_t_planned() -> None:
    """100 Mbit/s for one agent, of which its connection can use one: only the small cache is in time."""

    async def main() -> None:
        small = option("int4", 400_000, 0, 100, 90)  # 3.2 s at 1 Mbit/s; the large one takes 8
        agents = [AgentInfo(0, 1, ceiling_mbps=1.0), AgentInfo(1, 1)]
        allocator = Allocator(agents, make_policy("deadline"), Fixed(mbps=100), LeastLoaded(2), RecordingLink())
        await allocator.report(100)
        lossy = await allocator.assign(request(0, CACHE, small))
        other = await allocator.assign(request(1, CACHE, small))
        assert lossy.option == small and lossy.grant_mbps <= LEAST_SHARE * 100
        assert lossy.ready_s == pytest.approx(3.3, rel=0.01)
        assert other.option == CACHE and other.grant_mbps > 90

    virtually(main)
