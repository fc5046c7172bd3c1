"""Watching a run folder: what it tells while it grows, when it ends and when it is cut off."""

import io
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from agents.record import Status
from allocator.policies import POLICIES
from cluster.monitor.snapshot import RunSnapshot
from cluster.monitor.terminal_view import render
from cluster.monitor.watcher import MAX_EVENTS, MAX_POINTS, RunWatcher, newest
from cluster.run_folder import folder as run_folder
from tests.support.fake_run import FakeRun


@pytest.fixture
def fake(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "run")


def shown(snapshot: RunSnapshot, width: int = 100, height: int = 30) -> str:
    file = io.StringIO()
    Console(file=file, width=width, height=height).print(render(snapshot))
    return file.getvalue()


def test_a_run_from_its_start_to_its_end(fake: FakeRun) -> None:
    watcher = RunWatcher(fake.dir)
    snapshot = watcher.snapshot()
    assert (snapshot.state, snapshot.run, snapshot.turns) == ("starting", "run", [])
    fake.begin()
    snapshot = watcher.snapshot()
    assert (snapshot.state, snapshot.allocator, snapshot.deadline_ms) == ("starting", None, 1500)
    assert [agent.ended for agent in snapshot.agents] == [0, 0, 0, 0]
    assert [turn.planned for turn in snapshot.turns] == [400, 400]
    assert snapshot.policies[:2] == ["equal", "deadline"] and set(snapshot.policies) == set(POLICIES)

    fake.issue("equal", 0)
    fake.issue("equal", 1)
    fake.end("equal", 0, 2, Status.MET)
    fake.tick("equal", 1.0, paused=[3], grants_mbps=[1.0, 2.0, 3.0, 4.0], deadline_ms=1200)
    fake.event("equal", 0.5, "uplink: 5 Mbit/s for 10 s")
    snapshot = watcher.snapshot()
    assert (snapshot.state, snapshot.allocator, snapshot.at_s) == ("running", "equal", 1.0)
    assert snapshot.deadline_ms == 1200 and snapshot.timeline["waiting"] == 1
    assert snapshot.points == [[1.0, 20.0, 16.1, 14.9, 3]]
    assert asdict(snapshot.turns[0]) == {
        "name": "equal",
        "policy": "equal",
        "planned": 400,
        "issued": 2,
        "ended": 1,
        "met": 1,
        "late": 0,
        "rejected": 0,
        "failed": 0,
        "compliance": 1.0,
    }
    assert asdict(snapshot.agents[2]) == {
        "id": 2,
        "profile": "measured/qwen2.5-7b",
        "mode": "int8",
        "grant_mbps": 3.0,
        "estimate_mbps": 16.0,
        "status": "met",
        "latency_ms": 900.0,
        "deadline_ms": 1500.0,
        "met": 1,
        "ended": 1,
        "paused": False,
    }
    assert snapshot.agents[3].paused and snapshot.agents[3].status == ""
    assert snapshot.events[0]["text"] == "uplink: 5 Mbit/s for 10 s"

    fake.end("equal", 1, 2, Status.FAILED, reason="timeout")
    failed = watcher.snapshot().agents[2]
    assert (failed.status, failed.latency_ms, failed.met, failed.ended) == ("failed", None, 1, 2)
    fake.end("deadline", 0, 2, Status.LATE)
    fake.tick("deadline", 0.2)
    snapshot = watcher.snapshot()
    assert snapshot.allocator == "deadline" and len(snapshot.points) == 1
    assert [turn.compliance for turn in snapshot.turns] == [0.5, 0.0]
    assert snapshot.agents[2].ended == 1, "agents are those of the present turn"

    fake.end("deadline", 1, 0, Status.MET)  # it ends before anybody looks again
    fake.finish()
    for ended in (watcher.snapshot(), watcher.snapshot(), RunWatcher(fake.dir).snapshot()):
        assert ended.state == "ended"
        assert [turn.compliance for turn in ended.turns] == [0.5, 0.5]
        assert ended.agents[0].status == "met"
    assert watcher.snapshot().points, "what was seen of its timeline stays"


def test_lines_are_read_once_and_whole(fake: FakeRun) -> None:
    fake.begin()
    watcher = RunWatcher(fake.dir)
    line = json.dumps({"issued": 7})
    fake.append_text("equal", "host-1.jsonl", line[:5])
    assert watcher.snapshot().turns[0].issued == 0
    fake.append_text("equal", "host-1.jsonl", line[5:])
    assert watcher.snapshot().turns[0].issued == 0
    fake.append_text("equal", "host-1.jsonl", "\n")
    assert [watcher.snapshot().turns[0].issued for _ in range(3)] == [1, 1, 1]
    for nonsense in (
        "{",
        "[1]",
        "3",
        '{"status": "met"}',
        '{"status": "met", "agent_id": 99}',
        '{"status": 1}',
        "\xff",
    ):
        fake.append_text("equal", "host-1.jsonl", nonsense + "\n")
        fake.append_text("equal", "timeline.jsonl", nonsense + "\n")
    fake.issue("equal", 8)
    turn = watcher.snapshot().turns[0]
    assert (turn.issued, turn.ended) == (2, 0)


def test_numbers_that_are_none_don_t_break_json(fake: FakeRun) -> None:
    fake.begin()
    fake.end("equal", 0, 0, Status.REJECTED, grant_mbps=float("nan"), estimate_mbps=float("inf"))
    fake.tick("equal", 0.2, estimate_mbps=float("nan"), cloud_ms=[float("inf")])
    snapshot = RunWatcher(fake.dir).snapshot()
    json.dumps(asdict(snapshot), allow_nan=False)
    assert snapshot.timeline["estimate_mbps"] is None and snapshot.timeline["cloud_ms"] == [None]
    assert shown(snapshot)


def test_a_run_that_was_cut_off(fake: FakeRun) -> None:
    driver = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    fake.begin(driver.pid)
    fake.end("equal", 0, 0, Status.MET)
    fake.tick("equal", 0.2)
    watcher = RunWatcher(fake.dir)
    assert watcher.snapshot().state == "running"
    driver.kill()
    driver.communicate()
    for watching in (watcher, RunWatcher(fake.dir)):
        snapshot = watching.snapshot()
        assert (snapshot.state, snapshot.turns[0].met) == ("cut off", 1)
    fake.finish()  # as `scout recover` does
    assert watcher.snapshot().state == "ended"


def test_the_last_minute_and_the_last_events(fake: FakeRun) -> None:
    fake.begin()
    for number in range(1000):
        fake.tick("equal", number / 5)
    for number in range(5000):
        fake.tick("deadline", number / 50)
        fake.event("deadline", number / 50, f"event {number}")
    watcher = RunWatcher(fake.dir)
    snapshot = watcher.snapshot()
    times = [point[0] for point in snapshot.points]
    assert len(times) <= MAX_POINTS and times == sorted(times)
    assert times[-1] == pytest.approx(99.98) and times[0] >= 39.9 and times[0] < 41
    assert [event["text"] for event in snapshot.events] == [f"event {n}" for n in range(5000 - MAX_EVENTS, 5000)]


def test_many_agents_and_records_are_cheap(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path / "run", agents=64)
    fake.begin()
    watcher = RunWatcher(fake.dir)
    statuses = list(Status)
    fake.write("equal", [fake.record(number, number % 64, statuses[number % 4]) for number in range(20_000)])
    for number in range(600):
        fake.tick("equal", number / 5)
    began = time.process_time()
    snapshot = watcher.snapshot()
    first_s = time.process_time() - began
    assert snapshot.turns[0].ended == 20_000 and snapshot.turns[0].met == 5000
    assert first_s < 5, "0.3 s of the processor's time"
    assert len(json.dumps(asdict(snapshot))) < 60_000
    began = time.process_time()
    for number in range(50):
        fake.end("equal", 20_000 + number, number, Status.MET)
        watcher.snapshot()
    assert (time.process_time() - began) / 50 < 0.1, "some ms: only what is new is read"


@pytest.mark.parametrize(("width", "height"), [(120, 40), (80, 24), (40, 12), (20, 6)])
def test_the_terminal_s_view_fits(tmp_path: Path, width: int, height: int) -> None:
    fake = FakeRun(tmp_path / "run", agents=64, profile="[red]measured\x1b[2J")
    assert shown(RunWatcher(fake.dir).snapshot(), width, height)
    fake.begin()
    for number in range(128):
        fake.end("equal", number, number % 64, Status.MET if number % 2 else Status.LATE)
    for number in range(100):
        fake.tick("equal", number / 5, channel_mbps=20 if number < 50 else 5)
    fake.event("equal", 3.0, "uplink: 5 Mbit/s for 10 s\x1b[2J")
    text = shown(RunWatcher(fake.dir).snapshot(), width, height)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= max(height, 8), "head and events are always there"
    assert "\x1b" not in text
    if height >= 24:
        assert "50.0% met" in text and "more agents" in text and "[red]measured" in text


def test_the_newest_run(tmp_path: Path) -> None:
    with pytest.raises(run_folder.RunFolderError, match="no run folder"):
        newest(tmp_path)
    for name, started in (("b", 100), ("a", 200), ("c", 50)):
        FakeRun(tmp_path / name)
        os.utime(tmp_path / name / "scenario.yaml", (started, started))
    (tmp_path / "comparison").mkdir()
    assert newest(tmp_path).name == "a"
    with pytest.raises(run_folder.RunFolderError, match="is not a run folder"):
        RunWatcher(tmp_path)
