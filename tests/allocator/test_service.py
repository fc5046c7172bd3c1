"""The allocator serves one by one, touches only grants that change, and keeps workers' loads true."""

import asyncio
from collections.abc import Mapping

from agents.estimators import Ewma
from allocator.policies import make_policy
from allocator.problem import AgentInfo, ModeOption, Request
from allocator.service import Allocator
from cloud.dispatch import LeastLoaded

SEND = ModeOption("int8", 100_000, 0, 100, 99)
LOCAL = ModeOption("local", 0, 10, 0, 75)


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
