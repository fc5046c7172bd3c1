"""The edge's own answers begin at the last moment that lets all of them be in time, and leave nothing broken behind."""

import asyncio

import pytest

from agents.agent import Terms
from agents.last_resort import LastResorts
from agents.record import STAGES, Status
from models.clock import now_s
from tests.agents.test_agent import FULL, LOCAL, rig
from tests.support.virtual import SocketLoop, virtually

EVENT_LOOP = SocketLoop
IN_TIME = Terms(fall_back=True, edge_answers=True, margin_ms=20)


def test_answers_begin_so_late_that_all_are_in_time() -> None:
    async def main() -> list[float]:
        resorts, began_s = LastResorts(), {}

        async def wait(number: int, due_s: float) -> None:
            assert not await resorts.add(number, due_s, 200)
            began_s[number] = now_s()

        async with asyncio.TaskGroup() as group:
            for number, due_s in enumerate((1.0, 1.1, 3.0)):
                group.create_task(wait(number, due_s))
        return [began_s[number] for number in range(3)]

    assert virtually(main) == pytest.approx([0.7, 0.9, 2.8]), "the first makes room for the second"


def test_a_hurried_answer_is_the_oldest_of_those_that_may_be_and_begins_at_once() -> None:
    async def main() -> None:
        resorts = LastResorts()
        moments = [resorts.add(number, 5.0, 100) for number in range(3)]
        assert resorts.hurry({1, 2}) == 1 and await moments[1] and now_s() == 0
        resorts.drop(0)
        assert resorts.hurry({0, 1}) is None, "answered, or begun already"
        assert not await moments[2] and now_s() == pytest.approx(4.9)

    virtually(main)


async def test_the_edge_answers_when_the_cloud_has_not() -> None:
    async with rig(
        deadline_ms=65
    ) as r:  # the cloud's answer would be there after 60 ms; half of the margin is left at 55
        (record,) = await r.play([0], IN_TIME)
        assert (record.status, record.mode, record.answered) == (Status.MET, FULL, LOCAL)
        assert record.latency_ms == pytest.approx(55, abs=0.5), "it waited for the better answer as long as it could"
        assert sum(getattr(record, f"{stage}_ms") for stage in STAGES) == pytest.approx(record.latency_ms, abs=0.1)
        assert record.quality_delivered == 70 and record.wire_bytes > 200_000
        assert r.connections == 1 and not r.allocator.snapshot().in_flight


async def test_a_lost_cloud_costs_no_answer() -> None:
    async with rig() as r:
        r.serving.cancel()
        await asyncio.wait([r.serving])
        r.listener.close()
        r.uplink._connections[0].close()
        (record,) = await r.play([0], IN_TIME)
    assert (record.status, record.mode, record.answered) == (Status.MET, FULL, LOCAL)


async def test_an_answer_that_comes_in_time_is_the_better_one() -> None:
    async with rig() as r:
        (record,) = await r.play([0], IN_TIME)
    assert (record.status, record.answered, record.quality_delivered) == (Status.MET, FULL, 100)
