"""Changing a live run while it is on: what was asked is played, recorded, and undone when the turn ends."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cluster.run_folder.controls import ask
from cluster.scenario.events import PauseAgent, SetAllocator, SetDeadline, SetUplink, UplinkStep
from tests.support.commands import started
from tests.support.processes import patience_s

Write = Callable[..., Path]


def test_a_live_run_is_squeezed_and_its_ledger_says_so(ray_head: str, scenario: Write, tmp_path: Path) -> None:
    path = scenario(
        deadline_ms=1000,
        allocators=["deadline"],
        arrivals={"kind": "poisson", "rate_per_s": 2.0, "duration_s": 8},
        uplink={"channel": {"kind": "constant", "mbps": 20}},
    )
    run_dir = tmp_path / "run"
    process = started("run", path, "--out", run_dir, "--address", ray_head)
    journal = run_dir / "journal" / "deadline" / "timeline.jsonl"
    until_s = time.monotonic() + 60
    while not journal.exists() and time.monotonic() < until_s:
        time.sleep(0.1)
    time.sleep(2)
    asked_s = time.monotonic()
    ask(run_dir, SetUplink(steps=[UplinkStep(mbps=3, for_s=2)]))
    while '"channel_mbps": 3' not in journal.read_text() and time.monotonic() < asked_s + patience_s(5):
        time.sleep(0.02)
    assert time.monotonic() - asked_s < patience_s(1), "the channel follows within a second"
    for control in (
        SetDeadline(ms=1500),
        PauseAgent(agent=0, paused=True),
        PauseAgent(agent=99, paused=True),
        SetAllocator(policy="equal"),
        SetAllocator(policy="os:system"),
    ):
        ask(run_dir, control)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    summary = json.loads((run_dir / "summary.json").read_text())
    told = [event["text"] for event in summary["events"]]
    assert told[:3] == ["uplink: 3 Mbit/s for 2 s", "deadline: 1500 ms", "agent 0: paused"]
    assert told[3].startswith("refused: no agent 99") and told[4] == "allocator: equal"
    assert told[5].startswith("refused: allocator os:system")
    at_s = [event["at_s"] for event in summary["events"]]
    ledger = pd.read_parquet(run_dir / "ledger.parquet")
    assert (ledger.interventions == [sum(at <= s for at in at_s) for s in ledger.intended_s]).all()
    after = ledger[ledger.interventions == 6]
    assert len(after) and (after.deadline_ms == 1500).all()
    assert (ledger[ledger.interventions == 0].deadline_ms == 1000).all()
    paused = after[after.agent_id == 0]
    assert len(paused) and (paused.status == "rejected").all() and (paused.reason == "paused").all()
    timeline = pd.read_parquet(run_dir / "timeline.parquet")
    assert set(timeline.policy) == {"deadline", "equal"} and timeline.deadline_ms.iloc[-1] == 1500
    squeezed = timeline[timeline.channel_mbps == 3]
    assert 8 <= len(squeezed) <= 12, "two seconds of it, five moments each"
    assert squeezed.used_mbps.iloc[2:].mean() < 3.2, "single moments are a fifth of a second, and may be longer"
    assert timeline.channel_mbps.iloc[-1] == 20


def test_a_timeline_adds_up_to_what_was_sent(scenario: Write, tmp_path: Path) -> None:
    from cluster.run_folder import folder as run_folder
    from cluster.scenario.schema import Scenario
    from cluster.simulated.engine import run_simulated

    loaded = Scenario.load(scenario(arrivals={"kind": "poisson", "rate_per_s": 1.0, "duration_s": 20}))
    run_dir = run_folder.create(tmp_path / "run", loaded)
    run_simulated(loaded, run_dir)
    timeline = pd.read_parquet(run_dir / "timeline.parquet")
    ledger = pd.read_parquet(run_dir / "ledger.parquet")
    for name, moments in timeline.groupby("allocator"):
        sent = (moments.used_mbps * moments.at_s.diff().fillna(0)).sum() * 1e6 / 8
        assert sent == pytest.approx(ledger[ledger.allocator == name].wire_bytes.sum(), rel=0.03), name
        assert (moments.used_mbps <= moments.channel_mbps * 1.001 + 1e-3).all()
        grants = moments.grants_mbps.map(len)
        assert (grants == len(loaded.agent_profiles)).all()
