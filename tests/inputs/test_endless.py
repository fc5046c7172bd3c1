"""An experiment that nobody would wait for is refused before it starts, with its number of requests, steps or days."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from agents.arrivals import ARRIVALS, MAX_REQUESTS
from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import DocumentError
from netem.channels import CHANNELS

BASE: dict[str, Any] = {
    "name": "endless",
    "deadline_ms": 5000,
    "uplink": {"channel": {"kind": "constant", "mbps": 50}},
    "arrivals": {"kind": "synchronized", "rounds": 2, "period_s": 8},
    "agents": {"groups": [{"profile": "measured/qwen2.5-7b", "count": 4}]},
}


def load(tmp_path: Path, **changes: Any) -> Scenario:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(BASE | changes))
    return Scenario.load(tmp_path / "s.yaml")


def arrivals(kind: str, **settings: Any) -> dict[str, Any]:
    return {"arrivals": {"kind": kind, **settings}}


def channel(**settings: Any) -> dict[str, Any]:
    return {"uplink": {"channel": {"kind": "markov"}, **settings}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (arrivals("synchronized", rounds=2, period_s=1e9), "11,574.1 days until the last request of a turn; .* be 7"),
        (
            arrivals("synchronized", rounds=1_000_000, period_s=1),
            "about 4,000,000 requests a turn; .* be 1,000,000",
        ),
        (arrivals("synchronized", rounds=250_000, period_s=8), "days until"),
        (arrivals("poisson", rate_per_s=1000, duration_s=1e6), "about 4,000,000,000 requests"),
        (arrivals("poisson", rate_per_s=1, duration_s=300_000), "about 1,200,000 requests"),
        (arrivals("poisson", rate_per_s=1e-9, duration_s=1e6), "11.6 days"),
        (arrivals("bursts", rate_per_s=1000, size=4, duration_s=1e6), "about 4,000,000,000 requests"),
        (arrivals("bursts", rate_per_s=1e-9, size=4, duration_s=1e6), "11.6 days"),
        (
            channel(channel={"kind": "markov", "step_s": 1e-7}),
            "uplink.channel: about 280,000,000 changes",
        ),
        (arrivals("generated", like="chat", lengths="profile", duration_s=1e6), "about 5,500,000 requests"),
        (arrivals("generated", like="chat", lengths="profile", rate_per_s=1e-3, duration_s=1e6), "11.6 days"),
        (channel(channel={"kind": "markov", "step_s": 5e-324}), "about inf changes"),
        (channel(channel={"kind": "ar1", "scenario": "vehicular", "step_s": 1e-9}), "changes of the channel's rate"),
        (channel(report_s=0.01) | arrivals("synchronized", rounds=2, period_s=500_000), "uplink.report_s: about 50,"),
        ({"timeout_ms": 1e12}, "timeout_ms: 1000000000000.0"),
    ],
)
def test_what_has_no_end_is_refused_with_its_size(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    begun_s = time.process_time()
    with pytest.raises(DocumentError, match=message):
        load(tmp_path, **changes)
    assert time.process_time() - begun_s < 20


@pytest.mark.parametrize("text", ["0,0\n900000000,0\n", "1574694874,0\n", "0,0\n604801,1\n", "1e300,0\n", "inf,0\n"])
def test_arrivals_are_no_dates(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text("t_s,agent\n" + text)
    with pytest.raises(DocumentError, match=rf"a\.csv:{text.count(chr(10)) + 1}: .* is after the longest turn"):
        load(tmp_path, **arrivals("trace", path="a.csv"))


def test_a_loop_of_a_short_trace_is_counted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("t_s,mbps\n0,1\n0.000001,2\n")
    with pytest.raises(DocumentError, match="about 28,000,000 changes"):
        load(tmp_path, **channel(channel={"kind": "trace", "path": "t.csv"}))


SETTINGS: dict[str, dict[str, Any]] = {
    "synchronized": {"rounds": 30, "period_s": 2},
    "poisson": {"rate_per_s": 10, "duration_s": 60},
    "bursts": {"rate_per_s": 2, "size": 5, "duration_s": 300},
    "trace": {"path": "a.csv"},
    "workload": {"path": "w.csv"},
    "generated": {"like": "chat", "duration_s": 600},
}


@pytest.mark.parametrize("kind", ARRIVALS)
def test_every_process_tells_its_extent(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.csv").write_text("t_s,agent\n" + "".join(f"{n},0\n" for n in range(100)))
    (tmp_path / "w.csv").write_text("t_s,context_tokens,output_tokens\n" + "".join(f"{n},5,5\n" for n in range(100)))
    process = ARRIVALS[kind].model_validate({"kind": kind, **SETTINGS[kind]}, context={"base_dir": tmp_path})
    requests, last_s = process.extent(1000)
    schedule = process.schedule(1000, np.random.default_rng(1))
    assert len(schedule) == pytest.approx(requests, rel=0.15) and schedule[-1].intended_s <= last_s
    assert requests < MAX_REQUESTS


@pytest.mark.parametrize("kind", CHANNELS)
def test_every_channel_tells_how_often_it_changes(tmp_path: Path, kind: str) -> None:
    (tmp_path / "t.csv").write_text("t_s,mbps\n0,1\n0.5,2\n1,3\n")
    settings: dict[str, Any] = {
        "constant": {"mbps": 5},
        "steps": {"steps": [[0, 5], [1, 6], [99, 7]]},
        "ar1": {"scenario": "vehicular"},
        "cellular": {"cell": "lte_driving"},
        "trace": {"path": str(tmp_path / "t.csv")},
    }.get(kind, {})
    found = CHANNELS[kind].model_validate({"kind": kind, **settings})
    played = 0
    for change in found.play(1):
        if change.at_s >= 60:
            break
        played += 1
    assert found.changes_within(60) == pytest.approx(played, rel=0.05)
