"""The base station measures what has been, whatever the channel's own rhythm."""

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.channel_player import RateReport, uplink_events
from netem.channels import RateChange
from netem.channels.base import mean_rate_mbps


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
