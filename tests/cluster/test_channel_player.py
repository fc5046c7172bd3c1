"""The base station measures what has been, whatever the channel's own rhythm."""

import asyncio
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.channel_player import ChannelPlayer, RateReport, uplink_events
from cluster.run_folder.result import Turn
from cluster.scenario.events import UplinkStep
from models.clock import now_s, sleep_until
from netem.channels import RateChange
from netem.channels.base import mean_rate_mbps
from tests.support.virtual import virtually


def test_a_last_rate_is_reported_for_ever() -> None:
    events = list(islice(uplink_events(iter([RateChange(0, 50), RateChange(1, 10)]), 1.0), 6))
    assert events == [(0, 50), (1, 50), (1, 10), (2, 10), (3, 10), (4, 10)]
    assert [isinstance(event, RateReport) for event in events] == [False, True, False, True, True, True]


def test_a_report_is_the_mean_of_its_interval() -> None:
    events = uplink_events(iter([RateChange(0, 40), RateChange(0.5, 20), RateChange(0.75, 0.01)]), 1.0)
    report = next(event for event in events if isinstance(event, RateReport))
    assert report == (1.0, pytest.approx(0.5 * 40 + 0.25 * 20 + 0.25 * 0.01))


@given(st.lists(st.tuples(st.floats(0.01, 3), st.floats(0.01, 500)), max_size=20), st.floats(0.1, 2))
def test_nothing_is_lost_and_nothing_foreseen(gaps: list[tuple[float, float]], report_s: float) -> None:
    changes = [RateChange(0.0, 7.0)]
    for gap_s, mbps in gaps:
        changes.append(RateChange(changes[-1].at_s + gap_s, mbps))
    events = list(islice(uplink_events(iter(changes), report_s), 60))
    assert all(a.at_s <= b.at_s for a, b in pairwise(events))
    reports = [event for event in events if isinstance(event, RateReport)]
    measured = sum(report.mean_mbps for report in reports) * report_s
    end_s = len(reports) * report_s
    before = [change for change in changes if change.at_s < end_s]
    if reports:
        assert measured == pytest.approx(mean_rate_mbps(before, end_s) * end_s, rel=1e-6)


class Told:
    """What a link and an allocator were told, and when."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, float]] = []
        self.reports: list[float] = []
        self.peeks: list[float] = []

    async def set_channel(self, mbps: float) -> None:
        self.rates.append((round(now_s(), 6), mbps))

    async def report(self, mbps: float) -> None:
        self.reports.append(mbps)

    async def peek(self, mbps: float) -> None:
        self.peeks.append(mbps)


def test_a_squeezed_channel_goes_back_to_what_the_scenario_says_by_then() -> None:
    async def main() -> None:
        told, turn = Told(), Turn("deadline")
        channel = ChannelPlayer(40, now_s(), told, turn, asyncio.create_task)
        await channel.change(RateChange(0, 40))
        await sleep_until(1)
        channel.squeeze([UplinkStep(mbps=5, for_s=2), UplinkStep(mbps=10, for_s=1)])
        await sleep_until(1.5)
        assert turn.timeline.channel_mbps == 5
        await channel.change(RateChange(2, 60))  # the scenario's channel goes on underneath
        assert turn.timeline.channel_mbps == 5
        await sleep_until(4.5)
        assert told.rates == [(1, 5), (3, 10), (4, 60)] and told.peeks == [5, 10, 60]
        assert [(at_s, mbps) for at_s, _, mbps in turn.channel] == [(0, 40), (1, 5), (3, 10), (4, 60)]

    virtually(main)


def test_the_base_station_measures_what_was_there_not_what_was_planned() -> None:
    async def main() -> None:
        told = Told()
        channel = ChannelPlayer(40, now_s(), told, Turn("deadline"), asyncio.create_task)
        await sleep_until(1)
        await channel.report(40.0)
        await sleep_until(1.5)
        channel.squeeze([UplinkStep(mbps=10, for_s=1)])
        await sleep_until(2)
        await channel.report(40.0)
        await sleep_until(3)
        await channel.report(40.0)
        await sleep_until(4)
        await channel.report(40.0)
        assert told.reports == pytest.approx([40, 25, 25, 40])

    virtually(main)


def test_a_later_squeeze_takes_the_place_of_the_one_before() -> None:
    async def main() -> None:
        told = Told()
        channel = ChannelPlayer(40, now_s(), told, Turn("deadline"), asyncio.create_task)
        channel.squeeze([UplinkStep(mbps=5, for_s=60)])
        await sleep_until(1)
        channel.squeeze([UplinkStep(mbps=20, for_s=1)])
        await sleep_until(100)
        assert [mbps for _, mbps in told.rates][-2:] == [20, 40]

    virtually(main)
