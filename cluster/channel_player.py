"""What happens on the uplink, in order of time: its rate changes, and the base station reports what it measured."""

from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

from cluster.scenario.schema import Scenario
from models.clock import sleep_until
from netem.channels import RateChange

ChannelLog = list[tuple[float, float, float]]
"""(when the rate should have changed, when it did, Mbit/s), seconds since the run's start."""


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


async def play(
    scenario: Scenario,
    epoch_s: float,
    change: Callable[[RateChange], Awaitable[None]],
    report: Callable[[float], Awaitable[None]],
) -> None:
    """Change the channel's true rate as time goes by, and measure it for the estimator as a base station does; endless.

    Every `report_s` the estimator gets the mean rate of the interval that has ended. The first rate is in force and
    reported already; `change` is told of it nevertheless, at 0 s.
    """
    uplink = scenario.uplink
    for event in uplink_events(uplink.channel.play(scenario.seed), uplink.report_s):
        await sleep_until(epoch_s + event.at_s)
        if isinstance(event, RateReport):
            await report(event.mean_mbps)
        else:
            await change(event)
