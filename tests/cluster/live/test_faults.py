"""Faults in live runs: real processes die or freeze, a real link is cut; the ledger balances."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cluster.run_folder.ledger import check_balance
from tests.support.commands import Finished

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
    kill = {"kind": "kill", "part": "worker", "number": 1, "at_s": 3}
    done = live_run(scenario(**BASE | {"deadline_ms": 2000}, allocators=["deadline", "model_aware"], events=[kill]))
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
    assert events == [(name, "fault", "kill worker 1") for name in ("deadline", "model_aware")]


def test_faults_of_one_turn(live_run: Run, scenario: Write) -> None:
    """A pause, a cut link, a frozen worker and a killed host, one after another."""
    events = [
        {"kind": "pause", "agent": 2, "paused": True, "at_s": 0.5},
        {"kind": "cut", "agent": 0, "at_s": 2, "for_s": 1},
        {"kind": "freeze", "part": "worker", "number": 0, "at_s": 5, "for_s": 1},
        {"kind": "kill", "part": "host", "number": 1, "at_s": 7},
    ]
    cloud = {"workers": 1}
    done = live_run(scenario(**BASE, timeout_ms=10_000, allocators=["equal"], cloud=cloud, events=events))
    assert done.returncode == 0, done.stderr
    rows = done.ledger
    assert done.summary["issued"] == len(rows) and not done.summary["partial"]
    texts = [event["text"] for event in done.summary["events"]]
    assert texts == [
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
    died = rows[rows.reason == "the host of agent 1 died"]
    assert (
        set(died.agent_id) == {1}
        and len(rows[(rows.agent_id == 1) & (rows.intended_s > 7)]) == (died.intended_s > 7).sum()
    )
    assert rows[(rows.agent_id == 0) & (rows.intended_s > 7)].latency_ms.notna().all(), "the others are answered"


def none_answered(rows: pd.DataFrame, since_s: float, until_s: float) -> bool:
    """Whether requests, of which there are some, that were released between these times have no answer by then."""
    held = rows[rows.intended_s.between(since_s + 0.1, until_s - 0.1)]
    return len(held) > 0 and not (held.intended_s + held.latency_ms / 1e3 < until_s - 0.05).any()


@pytest.mark.parametrize("part", ["allocator", "helper"])
def test_what_a_turn_can_t_do_without_ends_the_run(live_run: Run, scenario: Write, part: str) -> None:
    kill = {"kind": "kill", "part": part, "at_s": 1.5}
    done = live_run(scenario(**BASE, allocators=["equal", "deadline"], events=[kill]))
    assert done.returncode == 1 and done.summary["partial"], done.stderr
    (reason,) = [text.removeprefix("PARTIAL: ") for text in done.summary["warnings"] if text.startswith("PARTIAL")]
    assert part in reason and reason.endswith("died")
    assert set(done.ledger.allocator) == {"equal"} and len(done.ledger) > 0
    failed = done.ledger[done.ledger.status == "failed"]
    assert failed.reason.str.contains(f"{part}|link").all(), failed.reason.unique()
