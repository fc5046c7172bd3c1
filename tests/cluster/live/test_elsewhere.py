"""A process on another node is kept on the station's clock, and says when the network between has become too slow."""

import asyncio
from typing import Any, cast

import pytest

from cluster.live import elsewhere
from cluster.live.elsewhere import InStep, Membership
from models.alignment import AlignedClock
from netem.relay.client import ClockSample, RelayAddress, StationLink
from netem.relay.protocol import RelayRefused

MEMBER = Membership(RelayAddress("10.0.0.1", 1, b""), "10.0.0.2", 50.0, probes=True)


class Station:
    """What a station answers, as the test has it."""

    def __init__(self) -> None:
        self.sample, self.mbps, self.lost = ClockSample(0.0, 1e-4), 1000.0, False
        self.reports: list[dict[str, Any]] = []
        self.opened = 0
        self.away = False

    @property
    def is_open(self) -> bool:
        return self.opened > 0

    async def open(self) -> None:
        if self.away:
            raise ConnectionRefusedError
        self.opened += 1
        self.lost = False

    async def clock(self, pings: int) -> ClockSample:
        if self.lost:
            raise RelayRefused("gone")
        return self.sample

    async def up_mbps(self, size: int) -> float:
        return self.mbps

    async def down_mbps(self, size: int) -> float:
        return 1000.0

    async def report(self, document: dict[str, Any]) -> None:
        self.reports.append(document)


@pytest.fixture
def station() -> Station:
    return Station()


@pytest.fixture
def process(station: Station, monkeypatch: pytest.MonkeyPatch) -> InStep:
    monkeypatch.setattr(elsewhere, "SOON_S", 0.01)
    monkeypatch.setattr(elsewhere, "LATER_S", 0.01)
    monkeypatch.setattr(AlignedClock, "settled", True)
    monkeypatch.setattr(AlignedClock, "drive", lambda clock, loop: None)
    return InStep(MEMBER, cast(StationLink, station))


async def reported(station: Station, key: str, value: Any) -> None:
    async with asyncio.timeout(10):
        while not station.reports or station.reports[-1][key] != value:
            await asyncio.sleep(0.005)


async def test_what_is_wrong_of_clock_and_network_is_reported(process: InStep, station: Station) -> None:
    await process.begin()
    station.sample = ClockSample(0.0002, 1e-4)
    async with asyncio.timeout(10):
        while not station.reports or station.reports[-1]["clock_error_ms"] < 0.15:
            await asyncio.sleep(0.005)
    assert station.reports[-1]["clock_error_ms"] < 0.25 and station.reports[-1]["slow"] == ""
    station.sample = ClockSample(5.0, 1.0)  # late on the way: not believed
    await reported(station, "round_trip_ms", 1000.0)
    assert station.reports[-1]["clock_error_ms"] < 0.25


async def test_a_network_slower_than_the_channel_twice_in_a_row_is_slow(process: InStep, station: Station) -> None:
    await process.begin()
    station.mbps = 40.0
    await reported(station, "slow", "it carries 40 Mbit/s beside the run, less than the uplink's 50")
    assert station.reports[-1]["least_mbps"] == 40
    station.mbps = 1000.0
    seen = len(station.reports)
    while len(station.reports) < seen + 3:
        await asyncio.sleep(0.005)
    assert station.reports[-1]["slow"], "it has been, and that is what counts"


async def test_once_too_slow_is_chance(process: InStep, station: Station) -> None:
    await station.open()
    for mbps in (40.0, 1000.0, 40.0, 1000.0):
        station.mbps = mbps
        await process._look(1)
        await process._check()
    assert process._report()["slow"] == ""


async def test_it_connects_again(process: InStep, station: Station) -> None:
    await process.begin()
    station.lost = True
    async with asyncio.timeout(10):
        while station.opened < 2 or not station.reports:
            await asyncio.sleep(0.005)


async def test_a_process_that_hears_nothing_of_the_station_ends_but_not_before(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "LEASE_CHECK_S", 0.01)
    monkeypatch.setattr(elsewhere, "LEASE_S", 0.3)
    lease = asyncio.create_task(elsewhere.until_unheard(cast(StationLink, station)))
    await asyncio.sleep(0.05)
    station.lost = station.away = True  # a relay that is started again
    await asyncio.sleep(0.05)
    station.away = False
    await asyncio.sleep(0.5)
    assert not lease.done() and station.opened == 2
    station.lost = station.away = True
    async with asyncio.timeout(10):
        await lease
