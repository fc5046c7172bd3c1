"""Faults in live runs: real processes die or freeze, a real link is cut; the ledger balances."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from cluster.run_folder.ledger import check_balance
from tests.support.commands import Finished, started
from tests.support.processes import alive, descendants, wait_until

Run = Callable[..., Finished]
Write = Callable[..., Path]
SECONDS = 9
AGENTS = {"groups": [{"profile": "tiny-profiles.yaml/small", "count": 3}]}
BASE: dict[str, Any] = {
    "agents": AGENTS,
    "arrivals": {"kind": "poisson", "rate_per_s": 2.0, "duration_s": SECONDS},
    "uplink": {"channel": {"kind": "constant", "mbps": 20}},
    "modes": ["int8", "int4"],
    "deadline_ms": 1000,
    "lateness_limit_ms": 5000,
}


def test_a_killed_worker_gets_no_more_requests_and_the_next_turn_begins_whole(live_run: Run, scenario: Write) -> None:
    """Where nothing is started again within a turn, and nothing sent again."""
    kill = {"kind": "kill", "part": "worker", "number": 1, "at_s": 3}
    settings = BASE | {"deadline_ms": 2000, "recovery": {"restarts": 0, "resend": False}}
    done = live_run(scenario(**settings, allocators=["deadline", "model_aware"], events=[kill]))
    assert done.returncode == 0, done.stderr
    rows = done.ledger
    check_balance(rows, len(rows))
    assert rows.groupby("allocator").size().nunique() == 1, "both turns ran in full"
    lost = rows[rows.status == "failed"]
    assert lost.reason.str.contains("worker 1").all() and lost.intended_s.max() < 3.5
    after = rows[rows.intended_s > 3.5]
    assert set(after.worker) == {0} and (after.status == "met").mean() > 0.9
    before = rows[rows.intended_s < 2.5]
    assert (before.worker == 1).groupby(before.allocator).any().all(), "it was started again for the second turn"
    events = [(event["allocator"], event["kind"], event["text"]) for event in done.summary["events"]]
    assert [event for event in events if event[2].startswith("kill")] == [
        (name, "fault", "kill worker 1") for name in ("deadline", "model_aware")
    ]


def test_what_is_killed_is_back_within_the_turn(live_run: Run, scenario: Write) -> None:
    """Worker, host, allocator and helper, one after another; every scheduled request has one row, and few fail."""
    parts = ["worker", "host", "allocator", "helper"]
    events = [{"kind": "kill", "part": part, "number": 0, "at_s": 1 + 6 * at} for at, part in enumerate(parts)]
    arrivals = {"kind": "poisson", "rate_per_s": 1.0, "duration_s": 27}
    settings = BASE | {"deadline_ms": 20_000, "arrivals": arrivals, "allocators": ["deadline"]}
    done = live_run(scenario(**settings, events=events))
    assert done.returncode == 0 and not done.summary["partial"], done.stderr
    rows, told = done.ledger, done.summary["events"]
    assert rows.request_id.is_unique and len(rows) == done.summary["scheduled"]
    names = ["worker 0", "the host of agent 0", "the allocator", "the link's helper process"]
    died = {
        name: event["at_s"] for name in names for event in told if event["text"].startswith(f"{name} died: process")
    }
    back = {
        name: event["at_s"] for name in names for event in told if event["text"].startswith(f"{name} is back after")
    }
    assert list(died) == list(back) == names, told
    failed = rows[rows.status == "failed"]
    assert failed.reason.str.contains("the host of agent 0 died").all(), "all others were sent again"
    missed = rows[rows.reason == "never released: the host of agent 0 died"]
    since_s, until_s = died["the host of agent 0"], back["the host of agent 0"]
    assert set(missed.agent_id) <= {0} and missed.intended_s.between(since_s - 0.2, until_s).all()
    later = rows[(rows.agent_id == 0) & (rows.intended_s > until_s)]
    assert len(later) and later.reason.eq("").all(), "the host went on with its schedule"
    assert (rows[rows.intended_s > back["worker 0"]].worker == 0).any(), "the worker serves again"
    assert done.summary["workers"][0]["died"] == 1


def test_a_worker_killed_from_outside_is_replaced(scenario: Write, tmp_path: Path) -> None:
    settings = BASE | {"deadline_ms": 20_000, "cloud": {"workers": 1}, "allocators": ["equal"]}
    process = started("run", scenario(**settings), "--out", tmp_path / "run", stderr=subprocess.STDOUT)
    try:
        journals = tmp_path / "run" / "journal" / "equal"
        begun = wait_until(lambda: any(path.stat().st_size for path in journals.glob("host-*.jsonl")), idle_s=60)
        assert begun, process.poll()
        family = descendants(process.pid)
        (worker,) = [pid for pid, name in family.items() if "ray::WorkerActor" in name]
        os.kill(worker, signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    done = Finished(process.returncode, output, "", tmp_path / "run")
    assert done.returncode == 0, output
    texts = [event["text"] for event in done.summary["events"]]
    assert len(texts) == 2 and f"worker 0 died: process {worker} on " in texts[0] and "worker 0 is back" in texts[1]
    assert (done.ledger.status != "failed").all(), "what it had was sent again once it was back"
    assert not any(map(alive, family))


def test_faults_of_one_turn(live_run: Run, scenario: Write) -> None:
    """A pause, a cut link, a frozen worker and a killed host, one after another."""
    events = [
        {"kind": "pause", "agent": 2, "paused": True, "at_s": 0.5},
        {"kind": "cut", "agent": 0, "at_s": 2, "for_s": 1},
        {"kind": "freeze", "part": "worker", "number": 0, "at_s": 5, "for_s": 1},
        {"kind": "kill", "part": "host", "number": 1, "at_s": 7},
    ]
    cloud = {"workers": 1}
    lasting = {"restarts": 0}
    done = live_run(
        scenario(**BASE, timeout_ms=10_000, allocators=["equal"], cloud=cloud, events=events, recovery=lasting)
    )
    assert done.returncode == 0, done.stderr
    rows = done.ledger
    assert done.summary["scheduled"] == len(rows) and not done.summary["partial"]
    texts = [event["text"] for event in done.summary["events"]]
    assert texts[6].startswith("the host of agent 1 died: process ")
    assert texts[:6] == [
        "agent 2: paused", "cut the link of agent 0 for 1 s", "restore the link of agent 0",
        "freeze worker 0 for 1 s", "worker 0 runs again", "kill the host of agent 1",
    ]  # fmt: skip
    paused = (rows.agent_id == 2) & (rows.intended_s > 0.6)
    assert (rows[paused].reason == "paused").all() and not (rows[~paused].reason == "paused").any()
    at_s = {event["text"]: event["at_s"] for event in done.summary["events"]}  # a busy machine plays events late
    cut_s, restored_s = at_s["cut the link of agent 0 for 1 s"], at_s["restore the link of agent 0"]
    assert none_answered(rows[rows.agent_id == 0], cut_s, restored_s), "nothing of agent 0 before its link is restored"
    frozen_s, thawed_s = at_s["freeze worker 0 for 1 s"], at_s["worker 0 runs again"]
    assert none_answered(rows[rows.agent_id != 2], frozen_s, thawed_s), "nothing by a frozen worker"
    died = rows[rows.reason.str.contains("the host of agent 1 died")]
    assert (
        set(died.agent_id) == {1}
        and len(rows[(rows.agent_id == 1) & (rows.intended_s > 7)]) == (died.intended_s > 7).sum()
    )
    assert rows[(rows.agent_id == 0) & (rows.intended_s > 7)].latency_ms.notna().all(), "the others are answered"


def none_answered(rows: pd.DataFrame, since_s: float, until_s: float) -> bool:
    """Whether requests, of which there are some, that were released between these times have no answer by then."""
    held = rows[rows.intended_s.between(since_s + 0.1, until_s - 0.1)]
    return len(held) > 0 and not (held.intended_s + held.latency_ms / 1e3 < until_s - 0.05).any()


def test_what_a_turn_can_t_do_without_ends_it_and_the_next_one_is_played(live_run: Run, scenario: Write) -> None:
    kill = {"kind": "kill", "part": "helper", "at_s": 1.5}
    done = live_run(scenario(**BASE, allocators=["equal", "deadline"], events=[kill], recovery={"restarts": 0}))
    assert done.returncode == 1 and done.summary["partial"], done.stderr
    reason = "the link's helper process died"
    told = [text for text in done.summary["warnings"] if text.startswith("PARTIAL")]
    assert told == [f"PARTIAL: {name}: {reason}" for name in ("equal", "deadline")]
    assert (done.ledger.status == "met").groupby(done.ledger.allocator).any().all(), "the link was built anew"
    failed = done.ledger[done.ledger.status == "failed"]
    assert set(failed.reason) <= {reason, f"never released: {reason}", f"connection lost: {reason}"}
    assert (done.ledger[done.ledger.intended_s > 3].reason == f"never released: {reason}").all()
