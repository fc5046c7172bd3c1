"""Every registered channel keeps the channel contract; the published ones play the published sequences."""

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from netem.channels import CHANNELS, MIN_CHANNEL_MBPS, AnyChannel, Channel
from netem.channels.ar1 import PUBLISHED
from netem.channels.base import mean_rate_mbps
from netem.channels.cellular import CELLS
from netem.channels.trace import TraceError, parse_csv, parse_mahimahi
from netem.wire import MAX_RATE_MBPS


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, dict]:
    trace = tmp_path / "t.csv"
    trace.write_text("t_s,mbps\n0,10\n1,20\n2.5,0\n")
    return {
        "constant": {"mbps": 50},
        "steps": {"steps": [[0, 50], [10, 5], [20, 50]]},
        "markov": {},
        "ar1": {"scenario": "urban_mmwave"},
        "cellular": {"cell": "lte_driving"},
        "trace": {"path": str(trace)},
    }


def make(data: dict, **context: object) -> Channel:
    return TypeAdapter(AnyChannel).validate_python(data, context=context)


@pytest.mark.parametrize("kind", CHANNELS)
def test_contract(kind: str, settings: dict[str, dict]) -> None:
    channel = make({"kind": kind, **settings[kind]})
    changes = list(islice(channel.play(7), 500))
    assert changes == list(islice(channel.play(7), 500)), "one seed, one sequence"
    assert changes[0].at_s == 0
    assert all(a.at_s < b.at_s for a, b in pairwise(changes))
    assert all(MIN_CHANNEL_MBPS <= c.mbps <= MAX_RATE_MBPS for c in changes)
    merged = channel.until(7, 30)
    assert all(c.at_s < 30 for c in merged) and all(a.mbps != b.mbps for a, b in pairwise(merged))
    with pytest.raises(ValidationError):
        make({"kind": kind, **settings[kind], "surprise": 1})


def test_markov_is_the_published_sequence() -> None:
    rates = [c.mbps for c in islice(make({"kind": "markov"}).play(42), 1000)]
    # 58.6 % of requests reach int8 in 1 s and 74.9 % int4 (published): 4.65 MB in 812 ms needs 46 Mbit/s, 2.325 MB 23.
    assert sum(r >= 50 for r in rates) == 586
    assert sum(r >= 25 for r in rates) == 749


def test_ar1_stays_in_bounds_and_outages_happen() -> None:
    rates = [c.mbps for c in islice(make({"kind": "ar1", "scenario": "vehicular"}).play(42), 2000)]
    published = PUBLISHED["vehicular"]
    assert min(rates) >= published["min"] and max(rates) <= published["max"]
    assert 0.06 < rates.count(published["outage_mbps"]) / len(rates) < 0.14


def test_ar1_by_hand_needs_every_parameter() -> None:
    with pytest.raises(ValidationError, match="rho"):
        make({"kind": "ar1", "mean": 10, "std": 1, "min": 1, "max": 20})
    with pytest.raises(ValidationError, match="min <= mean <= max"):
        make({"kind": "ar1", "mean": 30, "std": 1, "min": 1, "max": 20, "rho": 0.5})


def test_trace_is_found_beside_the_scenario_and_loops(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t_s,mbps\n0,10\n1,20\n")
    channel = make({"kind": "trace", "path": "a.csv"}, base_dir=tmp_path)
    assert channel.until(0, 5) == [(0, 10), (1, 20), (2, 10), (3, 20), (4, 10)]
    once = make({"kind": "trace", "path": "a.csv", "loop": False}, base_dir=tmp_path)
    assert once.until(0, 5) == [(0, 10), (1, 20)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,rate\n0,1\n", "x.csv:1: the first line must be 't_s,mbps'"),
        ("t_s,mbps\n0,10\n1,fast\n", "x.csv:3: '1,fast' is not"),
        ("t_s,mbps\n0,10\n0,20\n", "x.csv:3: 0 s does not come after 0 s"),
        ("t_s,mbps\n0,-3\n", "x.csv:2: -3 Mbit/s is outside"),
        ("t_s,mbps\n0,nan\n", "x.csv:2: nan Mbit/s is outside"),
        ("t_s,mbps\n1,3\n", "x.csv:2: the first time must be 0"),
        ("t_s,mbps\n", "no rates after the header"),
    ],
)
def test_csv_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(TraceError, match=r"x\.csv") as error:
        parse_csv(text.splitlines(), Path("x.csv"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1\n2\nx\n", "m.up:3: 'x' is not"), ("5\n3\n", "m.up:2: 3 ms comes before 5 ms"), ("0\n", "after 0 ms")],
)
def test_mahimahi_errors_name_the_line(text: str, message: str) -> None:
    with pytest.raises(TraceError) as error:
        parse_mahimahi(text.splitlines(), Path("m.up"), 100)
    assert message in str(error.value)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=300), st.sampled_from([1, 20, 100, 333]))
def test_mahimahi_keeps_every_byte(opportunities_ms: list[int], bin_ms: int) -> None:
    opportunities_ms.sort()
    changes, length_s = parse_mahimahi([str(ms) for ms in opportunities_ms], Path("m"), bin_ms)
    assert length_s == opportunities_ms[-1] / 1000
    carried_bytes = mean_rate_mbps(changes, length_s) * 1e6 / 8 * length_s
    floor = MIN_CHANNEL_MBPS * 1e6 / 8 * length_s  # empty bins are played at the floor rate
    assert 1500 * len(opportunities_ms) - 1e-6 <= carried_bytes <= 1500 * len(opportunities_ms) + floor + 1e-6


def test_missing_and_binary_traces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"gone\.csv: No such file"):
        make({"kind": "trace", "path": "gone.csv"}, base_dir=tmp_path)
    (tmp_path / "b.up").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValidationError, match="not a text file"):
        make({"kind": "trace", "path": "b.up"}, base_dir=tmp_path)


@pytest.mark.parametrize("cell", CELLS)
def test_cellular_rates_are_what_their_parameters_say(cell: str) -> None:
    channel = make({"kind": "cellular", "cell": cell, "outage_every_s": 10, "max_mbps": 10_000})
    rates = np.array([change.mbps for change in islice(channel.play(3), 200_000)])  # 4,000 s
    settings = CELLS[cell]
    out = rates == settings["outage_mbps"]
    assert out.mean() == pytest.approx(settings["outage_s"] / (10 + settings["outage_s"]), rel=0.35)
    db = 10 * np.log10(rates[~out] / settings["median_mbps"])
    assert db.std() == pytest.approx(np.hypot(settings["shadowing_db"], settings["fading_db"]), rel=0.15)
    assert abs(db.mean()) < 0.5 * settings["shadowing_db"]


def test_fading_forgets_in_its_own_time() -> None:
    channel = make({"kind": "cellular", "cell": "lte_walking", "shadowing_db": 0, "outage_every_s": 1e6})
    db = 10 * np.log10([change.mbps for change in islice(channel.play(1), 50_000)])
    after = round(CELLS["lte_walking"]["fading_s"] / channel.step_s)  # type: ignore[attr-defined]
    assert np.corrcoef(db[:-after], db[after:])[0, 1] == pytest.approx(np.exp(-1), abs=0.05)


def test_the_shipped_trace_is_what_its_channel_plays() -> None:
    path = Path(__file__).parents[2] / "configs" / "traces" / "lte_driving.csv"
    shipped = islice(make({"kind": "trace", "path": str(path)}).play(0), 3000)
    played = islice(make({"kind": "cellular", "cell": "lte_driving"}).play(42), 3000)
    assert all(a == pytest.approx(b, abs=1e-3) for a, b in zip(shipped, played, strict=True))
