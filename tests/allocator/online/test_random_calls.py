"""Random sequences of calls: an allocator leaves nothing behind, and its plans carry the grants that the link has."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.estimators import Ewma
from allocator.online.service import Allocator, Rules
from allocator.policies import POLICIES, make_policy
from allocator.problem import Plan, Request
from cloud.dispatch import LeastLoaded
from tests.support.allocators import AGENTS, CACHE, RecordingLink, now_s, request
from tests.support.options import option
from tests.support.virtual import virtually


class SlowLink(RecordingLink):
    """Takes a while for each change."""

    async def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        await super().set_grants(grants_mbps)
        await asyncio.sleep(0.003)


OPTIONS = (
    CACHE,
    option("int4", 250_000, 3, 100, 90),
    option("prompt", 500, 0, 150, 80),
    option("scout", 400, 10, 400, 70),
    option("local", 0, 300, 0, 60),
)
Event = tuple[str, int, float]
events = st.lists(
    st.tuples(
        st.sampled_from(["announce", "assign", "received", "finish", "report", "wait"]),
        st.integers(0, 7),
        st.floats(0.1, 60),
    ),
    max_size=40,
)
rules_of_all_kinds = st.sampled_from([Rules(), Rules(False, "late", True), Rules(True, "local", True)])


async def play(
    allocator: Allocator, taken: list[Event], ask: Callable[[Request], Coroutine[Any, Any, Plan]]
) -> tuple[list[Plan], dict[int, float]]:
    """Let all this happen. Returns the plans, and when each assigned request left the uplink."""
    assigning: dict[int, asyncio.Task[Plan]] = {}
    left_s: dict[int, float] = {}
    ended: set[int] = set()

    for what, number, amount in taken:
        if what == "announce" and number not in assigning.keys() | ended:
            allocator.announce(request(number, *OPTIONS, left_ms=1500, starts_in_ms=amount, agent_id=number % 4))
        elif what == "assign" and number not in assigning.keys() | ended:
            asking = request(number, *OPTIONS, left_ms=1500 - amount, agent_id=number % 4)
            assigning[number] = asyncio.create_task(ask(asking))
            await asyncio.sleep(0)  # asked, but maybe not answered yet
        elif what == "received" and number in assigning:
            allocator.received(number)
            left_s.setdefault(number, now_s())
        elif what == "finish":
            allocator.finish(number)
            ended.add(number)
            left_s.setdefault(number, now_s())
        elif what == "report":
            await allocator.report(amount)
        elif what == "wait":
            await asyncio.sleep(amount / 100)
    for number in range(8):
        allocator.finish(number)
        left_s.setdefault(number, now_s())
    return list(await asyncio.gather(*assigning.values())), left_s


@pytest.mark.parametrize("policy", ["equal", "deadline", "greedy", "quality_max"])
@settings(max_examples=30, deadline=None)
@given(taken=events, rules=rules_of_all_kinds)
def test_whatever_happens_nothing_is_left_behind(policy: str, taken: list[Event], rules: Rules) -> None:
    async def main() -> None:
        link, dispatcher = SlowLink(), LeastLoaded(2)
        allocator = Allocator(AGENTS, make_policy(policy), Ewma(), dispatcher, link, rules)
        await allocator.report(20)
        plans, _ = await play(allocator, taken, allocator.assign)
        assert all((plan.worker >= 0) == (plan.option.wire_bytes > 0) for plan in plans)
        await asyncio.sleep(1)
        assert dispatcher.free_in_ms() == (0, 0)
        assert (allocator._announced, list(allocator._transfers), allocator._regranting) == ({}, [], None)
        assert all(mbps >= 0 for mbps in link.grants_mbps.values())
        asked = await allocator.assign(request(99, *OPTIONS, left_ms=60_000, agent_id=0))
        assert asked.meets and asked.worker == 0

    virtually(main)


@pytest.mark.parametrize("policy", [*POLICIES, "static_int4"])
@settings(max_examples=15, deadline=None)
@given(taken=events, rules=rules_of_all_kinds)
def test_the_grant_of_a_plan_is_the_one_that_the_link_was_told(policy: str, taken: list[Event], rules: Rules) -> None:
    """Fails on commit 06bf9f5, where a plan had the policy's own figure (fact D1)."""

    async def main() -> None:
        link = SlowLink()
        allocator = Allocator(AGENTS, make_policy(policy), Ewma(), LeastLoaded(2), link, rules)
        await allocator.report(20)
        sends: dict[int, tuple[Request, float]] = {}  # those on the uplink, and when each can begin to send

        async def ask(asking: Request) -> Plan:
            asked_s = now_s()
            plan = await allocator.assign(asking)
            if not plan.option.wire_bytes:
                assert plan.grant_mbps == 0 and plan.ready_s > now_s()
                return plan
            sends[asking.request_id] = asking, asked_s + plan.option.edge_ms / 1e3
            assert plan.grant_mbps == link.grants_mbps[asking.agent_id]
            if any(t.request_id == asking.request_id for t in allocator._transfers):  # it may have ended meanwhile
                assert plan.ready_s > now_s() and not math.isnan(plan.ready_s)
            return plan

        _, left_s = await play(allocator, taken, ask)
        means_mbps = allocator.mean_grants_mbps()
        assert set(means_mbps) == {number for number, (_, sends_s) in sends.items() if left_s[number] > sends_s}
        for number, mean_mbps in means_mbps.items():
            asking, sends_s = sends[number]
            assert mean_mbps == pytest.approx(link.mean_mbps(asking.agent_id, sends_s, left_s[number]), rel=1e-6)

    virtually(main)


@pytest.mark.parametrize("policy", ["deadline", "greedy", "optimal"])
def test_grants_in_force_never_add_up_to_more_than_is_believed(policy: str) -> None:
    async def main() -> None:
        link = SlowLink()
        allocator = Allocator(AGENTS, make_policy(policy), Ewma(safety=1.0), LeastLoaded(4), link, Rules(hedge=False))
        for turn, mbps in enumerate([20, 5, 40, 0.5, 30]):
            await allocator.report(mbps)
            for agent in range(4):
                await allocator.assign(request(10 * turn + agent, *OPTIONS, left_ms=1500, agent_id=agent))
                sending = {transfer.agent_id for transfer in allocator._transfers}
                assert sum(link.grants_mbps[a] for a in sending) <= allocator._estimate_mbps * 1.002
                await asyncio.sleep(0.05)
            for agent in range(4):
                allocator.received(10 * turn + agent)
                await asyncio.sleep(0.05)
                sending = {transfer.agent_id for transfer in allocator._transfers}
                assert sum(link.grants_mbps[a] for a in sending) <= allocator._estimate_mbps * 1.002
            assert not len(allocator._transfers)

    virtually(main)
