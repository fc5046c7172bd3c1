"""The uplink's true rate as time goes by: the scenario's channel, what squeezes it, the base station's reports."""

from asyncio import Task
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from cluster.run_folder.result import Turn
from cluster.scenario.events import ChannelParts, UplinkStep
from models.clock import now_s, sleep_until
from netem.channels import RateChange


class RateReport(NamedTuple):
    """At `at_s`: the channel's mean rate over the interval that has just ended, link-layer Mbit/s."""

    at_s: float
    mean_mbps: float


def uplink_events(changes: Iterator[RateChange], report_s: float) -> Iterator[RateChange | RateReport]:
    """Rate changes and, every `report_s`, reports; endless. A report comes before a change at the same time.

    Args:
        changes: of a channel: the first at 0 s, endless or with a last rate that holds.
    """
    now = next(changes)
    yield now
    upcoming = next(changes, None)
    reports = 0
    since_s, carried = now.at_s, 0.0  # of the current interval: accounted until when, Mbit
    while True:
        report_at_s = (reports + 1) * report_s
        if upcoming is not None and upcoming.at_s < report_at_s:
            carried += now.mbps * (upcoming.at_s - since_s)
            since_s = upcoming.at_s
            yield upcoming
            now, upcoming = upcoming, next(changes, None)
        else:
            carried += now.mbps * (report_at_s - since_s)
            yield RateReport(report_at_s, carried / report_s)
            since_s, carried = report_at_s, 0.0
            reports += 1


class ChannelPlayer:
    """The uplink's true rate: the scenario's, unless and as long as an event squeezes it.

    Args:
        first_mbps: the channel's first rate, which is in force and reported already.
        parts: the link, whose rate it sets, and the allocator, which it tells.
        turn: its log gets every rate that holds, whatever set it.
        spawn: runs a coroutine beside the channel.
    """

    def __init__(
        self, first_mbps: float, epoch_s: float, parts: ChannelParts, turn: Turn, spawn: Callable[[Any], Task]
    ) -> None:
        self._planned_mbps = first_mbps
        self._epoch_s = epoch_s
        self._parts = parts
        self._turn = turn
        self._spawn = spawn
        self._squeezed: Task | None = None
        self._touched = False  # since the last report
        self._carried_mbit, self._since_s, self._reported_s = 0.0, epoch_s, epoch_s
        turn.timeline.channel_mbps = first_mbps

    async def play(self, changes: Iterator[RateChange], report_s: float) -> None:
        """Change the true rate as time goes by, and measure it for the estimator as a base station does; endless.

        Every `report_s` the estimator gets the mean rate of the interval that has ended.
        """
        for event in uplink_events(changes, report_s):
            await sleep_until(self._epoch_s + event.at_s)
            if isinstance(event, RateReport):
                await self.report(event.mean_mbps)
            else:
                await self.change(event)

    async def change(self, event: RateChange) -> None:
        """The scenario's channel has a new rate."""
        self._planned_mbps = event.mbps
        if self._squeezed is None:
            await self._set(event.mbps, event.at_s)

    async def report(self, mean_mbps: float) -> None:
        """The base station has measured the scenario's mean rate; the squeezed one's, if there was one."""
        self._account()
        if self._touched:
            mean_mbps = self._carried_mbit / max(self._since_s - self._reported_s, 1e-9)
        self._touched = self._squeezed is not None
        self._carried_mbit, self._reported_s = 0.0, self._since_s
        await self._parts.report(mean_mbps)

    def squeeze(self, steps: Sequence[UplinkStep]) -> None:
        """Play these rates from now on, then the scenario's again; replaces an earlier squeeze."""
        if self._squeezed is not None:
            self._squeezed.cancel()
        self._squeezed = self._spawn(self._play(steps))

    async def _play(self, steps: Sequence[UplinkStep]) -> None:
        until_s = now_s()
        for step in steps:
            await self._set(step.mbps, until_s - self._epoch_s)
            until_s += step.for_s
            await sleep_until(until_s)
        self._squeezed = None
        await self._set(self._planned_mbps, until_s - self._epoch_s)

    async def _set(self, mbps: float, at_s: float) -> None:
        if at_s > 0:  # the first rate is in force already
            await self._parts.set_channel(mbps)
            self._account()
            self._touched |= self._squeezed is not None
            await self._parts.peek(mbps)
        self._turn.timeline.channel_mbps = mbps
        self._turn.channel.append((at_s, now_s() - self._epoch_s, mbps))

    def _account(self) -> None:
        at_s = now_s()
        self._carried_mbit += self._turn.timeline.channel_mbps * (at_s - self._since_s)
        self._since_s = at_s
