"""Simulated runs, end to end: the papers' headline, equal seeds, ledgers that balance, ends that come early."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from agents.record import Status
from allocator.policies import POLICIES
from cluster import wiring
from cluster.run_folder.accounting import INTERRUPTED
from cluster.run_folder.ledger import assemble
from cluster.run_folder.result import RunResult
from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import Document
from cluster.simulated.engine import SimulatedEngine
from tests.support.commands import REPOSITORY, Finished, scout, started
from tests.support.processes import cpu_s, wait_until

Write = Callable[..., Path]
SMALL_AND_LARGE = [{"profile": "tiny-profiles.yaml/small"}, {"profile": "tiny-profiles.yaml/large"}]
CONSTANT = {"channel": {"kind": "constant", "mbps": 10}}


@pytest.fixture
def simulate(scenario: Write) -> Callable[..., tuple[Scenario, RunResult]]:
    """Runs the tiny scenario, with keys replaced, in this process."""

    def run(**changes: Any) -> tuple[Scenario, RunResult]:
        loaded = Scenario.load(scenario(**changes))
        return loaded, SimulatedEngine(loaded).run()

    return run


def rows_of(loaded: Scenario, result: RunResult) -> pd.DataFrame:
    """The balanced ledger of a whole run."""
    assert not result.problems
    rows = assemble(result.turns, loaded, "lost")
    assert len(rows) == len(loaded.schedule()) * len(loaded.allocators), "every arrival has a row in every turn"
    assert not rows.reason.eq("lost").any()
    assert rows.lateness_ms.max() < 1e-6, "virtual time is never late"
    return rows


def run_simulated(path: Path, run_dir: Path, *arguments: str) -> Finished:
    done = scout("run", str(path), "--engine", "simulated", "--out", str(run_dir), *arguments)
    return Finished(done.returncode, done.stdout, done.stderr, run_dir)


def test_the_headline_of_the_papers(tmp_path: Path) -> None:
    done = run_simulated(REPOSITORY / "configs" / "congestion.yaml", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == done.summary
    assert document["valid"] and not document["partial"] and document["engine"] == "simulated"
    rounds = {name: s["rounds_all_met"] for name, s in document["allocators"].items()}
    assert rounds == {"equal": 0.0, "model_aware": 1.0}
    assert {path.name for path in done.run_dir.iterdir()} == {
        "scenario.yaml", "run.json", "summary.json", "ledger.parquet", "channel.csv", "timeline.parquet",
    }  # fmt: skip
    ledger = done.ledger
    assert len(ledger) == document["issued"] == 40
    # Four workers for four agents: a request takes what its bytes take on its grant, its compute, and nothing else.
    assert (ledger.cloud_queue_ms == 0).all()
    transfer_ms = ledger.wire_bytes * 8 / (ledger.grant_mbps * 1e3)
    np.testing.assert_allclose(ledger.transfer_ms, transfer_ms, rtol=1e-9)
    np.testing.assert_allclose(ledger.latency_ms, ledger.predicted_ms, rtol=1e-6)


OUTAGES = {
    "uplink": {"channel": {"kind": "ar1", "scenario": "vehicular"}},
    "deadline_ms": 3000,
    "arrivals": {"kind": "poisson", "rate_per_s": 0.15, "duration_s": 120},
    "modes": None,
    "agents": {"groups": [{"profile": "measured/qwen2.5-7b", "count": 3}, {"profile": "measured/mistral-7b-v0.3"}]},
    "allocators": [{"policy": "deadline", "hedge": False}, {"policy": "deadline", "hedge": True}],
}


def test_one_seed_gives_one_ledger_and_another_seed_another(
    scenario: Write, simulate: Callable[..., Any], tmp_path: Path
) -> None:
    runs = [run_simulated(scenario(**OUTAGES), tmp_path / f"run-{number}") for number in range(2)]
    assert [done.returncode for done in runs] == [0, 0], runs[0].stderr
    one, again = ((done.run_dir / "ledger.parquet").read_bytes() for done in runs)
    assert one == again
    here, other = rows_of(*simulate(**OUTAGES)), rows_of(*simulate(**OUTAGES, seed=6))
    pd.testing.assert_frame_equal(runs[0].ledger, here)
    assert len(other) != len(here) or not other.intended_s.equals(here.intended_s)
    assert set(other.estimate_mbps) != set(here.estimate_mbps), "another channel, too"


def test_a_turn_doesn_t_depend_on_those_before_it(simulate: Callable[..., Any]) -> None:
    alone = rows_of(*simulate(**OUTAGES | {"allocators": ["deadline"]}))
    after = rows_of(*simulate(**OUTAGES | {"allocators": ["quality_max", "deadline"]}))
    after = after[after.allocator == "deadline"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, after)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_runs_and_balances(simulate: Callable[..., Any], policy: str) -> None:
    arrivals = {"kind": "poisson", "rate_per_s": 0.5, "duration_s": 8}
    groups = [{"profile": "measured/qwen2.5-7b", "count": 2}]
    both = [policy, {"policy": policy, "hedge": True}]
    changes = {"agents": {"groups": groups}, "modes": None, "deadline_ms": 2000, "allocators": both}
    rows = rows_of(*simulate(**changes, arrivals=arrivals, uplink={"channel": {"kind": "markov"}}))
    assert rows.status.isin([Status.MET, Status.LATE]).all(), rows.reason.unique()
    np.testing.assert_array_less(rows.transfer_ms, rows.latency_ms + 1e-9)


def test_hedges_save_what_outages_would_cost(simulate: Callable[..., Any]) -> None:
    loaded, result = simulate(**OUTAGES)
    rows = rows_of(loaded, result)
    plain, hedged = (rows[rows.allocator == name] for name in ("deadline", "deadline+hedge"))
    assert set(plain.hedge) == {""}
    from_hedge = hedged[(hedged.hedge != "") & (hedged.answered == hedged.hedge)]
    assert len(from_hedge) >= 5 and (from_hedge.status == Status.MET).all()
    served = sum(worker.get("hedges_served", 0) for worker in result.workers)
    assert served == len(from_hedge)
    assert (hedged.status == Status.MET).mean() > (plain.status == Status.MET).mean()
    assert hedged.quality_delivered.mean() > plain.quality_delivered.mean()
    # An answer counts as what it is, and what was withdrawn wasn't sent.
    options = {(p.name, str(mode)): entry for p in loaded.models for mode, entry in p.modes.items()}
    for row in hedged.itertuples():
        assert row.quality_credited == options[row.profile, row.answered].quality
        whole = options[row.profile, row.mode].payload_bytes
        ahead = options[row.profile, row.hedge].payload_bytes if row.hedge else 0
        if row.answered == row.mode:
            assert row.payload_bytes == whole + ahead
        else:
            assert ahead <= row.payload_bytes < whole + ahead
    waited = hedged[hedged.answered == hedged["mode"]]
    assert (waited.hedge != "").any(), "most hedges aren't needed"


def test_overload_balances(simulate: Callable[..., Any]) -> None:
    """Backlogs, full queues, timeouts: all at once, each with its reason."""
    loaded, result = simulate(
        agents={"groups": [{"profile": "tiny-profiles.yaml/small", "count": 6}], "backlog_limit": 3},
        arrivals={"kind": "poisson", "rate_per_s": 10, "duration_s": 4},
        cloud={"workers": 1, "queue_limit": 2},
        modes=None,
        timeout_ms=1000,
        uplink={"channel": {"kind": "steps", "steps": [[0, 20], [2, 0.1], [3, 40]]}},
        allocators=["equal", "deadline", {"policy": "deadline", "hedge": True}, "static_prompt"],
        on_infeasible="late",
    )
    rows = rows_of(loaded, result)
    assert set(rows.status) == set(Status)
    reasons = set(rows.reason)
    assert {"", "backlog", "cloud: queue_full", "no answer within 1000 ms"} == reasons
    assert (rows.latency_ms.isna() == rows.status.isin([Status.REJECTED, Status.FAILED])).all()
    full = sum(worker["refused_queue_full"] for worker in result.workers)
    assert (rows.reason == "cloud: queue_full").sum() <= full


def test_2000_agents(simulate: Callable[..., Any]) -> None:
    rows = rows_of(
        *simulate(
            agents={"groups": [{"profile": "tiny-profiles.yaml/small", "count": 2000}]},
            arrivals={"kind": "poisson", "rate_per_s": 0.05, "duration_s": 10},
            uplink={"channel": {"kind": "constant", "mbps": 200}},
            cloud={"workers": 16},
            modes=["int8", "int4"],
            allocators=["model_aware", "deadline"],
        )
    )
    assert rows.agent_id.nunique() > 500
    met = (rows.status == Status.MET).groupby(rows.allocator).mean()
    assert met["model_aware"] == 0, "0.1 Mbit/s for each of 2,000 carries no cache in time"
    assert met["deadline"] > 0.9


def test_a_long_time_takes_none(simulate: Callable[..., Any]) -> None:
    arrivals = {"kind": "synchronized", "rounds": 3, "period_s": 5e3}  # four hours
    uplink = CONSTANT | {"report_s": 100}
    rows = rows_of(*simulate(arrivals=arrivals, uplink=uplink))
    assert (rows.status[rows.allocator == "model_aware"] == Status.MET).all()


def test_stopped_before_it_began_it_has_no_turns(scenario: Write) -> None:
    engine = SimulatedEngine(Scenario.load(scenario()))
    engine.stop(INTERRUPTED)
    engine.stop("again")
    result = engine.run()
    assert (result.turns, result.problems) == ([], [INTERRUPTED])


def test_stopped_while_a_turn_is_set_up_it_releases_nothing(scenario: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SimulatedEngine(Scenario.load(scenario()))

    def make_and_stop(*arguments: Any) -> Any:
        engine.stop(INTERRUPTED)
        return wiring.make_allocator(*arguments)

    monkeypatch.setattr("cluster.simulated.engine.make_allocator", make_and_stop)
    result = engine.run()
    assert result.problems == [INTERRUPTED]
    assert [record.reason for turn in result.turns for record in turn.records] == []


LONG = {"kind": "poisson", "rate_per_s": 5, "duration_s": 20_000}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_with_a_partial_report(scenario: Write, tmp_path: Path, signum: int) -> None:
    run_dir = tmp_path / "run"
    arguments = ["run", scenario(arrivals=LONG), "--engine", "simulated", "--out", run_dir]
    process = started(*arguments, stderr=subprocess.STDOUT)
    try:
        give_up_s = time.monotonic() + 60
        while not (run_dir / "run.json").exists():
            assert process.poll() is None and time.monotonic() < give_up_s, process.communicate()[0]
            time.sleep(0.05)
        begun_s = cpu_s(process.pid)
        assert wait_until(lambda: cpu_s(process.pid) > begun_s + 3, idle_s=60), "well within the first turn"
        process.send_signal(signum)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert "PARTIAL: interrupted" in output and "Traceback" not in output
    done = Finished(process.returncode, output, "", run_dir)
    assert done.summary["partial"]
    s = done.summary["allocators"]["equal"]
    assert s["scheduled"] == s["met"] + s["late"] + s["rejected"] + s["failed"] == len(done.ledger) > s["issued"] > 0
    assert set(done.ledger.allocator) == {"equal"}, "the other allocator's turn never began"
    assert set(s["reasons"]) <= {"interrupted", "never released: interrupted", "backlog", "no answer within 2800 ms"}


def test_an_agent_s_mistake_is_a_row_and_not_a_crash(scenario: Write) -> None:
    """A policy that can't serve what it is offered fails requests, each with its reason."""
    document = Document.read(
        scenario(modes=["full", "local"], arrivals={"kind": "synchronized", "rounds": 1, "period_s": 1})
    )
    loaded = Scenario.from_document(document, ["static_full"])
    broken = loaded.model_copy(
        update={"allocators": [loaded.allocators[0].model_copy(update={"policy": "static_int8"})]}
    )
    rows = rows_of(broken, SimulatedEngine(broken).run())
    assert (rows.status == Status.FAILED).all() and rows.reason.str.contains("no mode 'int8'").all()


def test_asking_takes_as_long_as_is_said(scenario: Write) -> None:
    loaded = Scenario.load(scenario(allocators=["equal", "model_aware"]))
    at_once = SimulatedEngine(loaded).run().turns
    asked = SimulatedEngine(loaded, {"equal": 8.0}).run().turns
    assert [r.allocate_ms for r in asked[0].records if r.worker >= 0] == pytest.approx([8.0] * len(asked[0].records))
    assert all(r.allocate_ms == 0 for r in at_once[0].records)
    assert asked[1].records == at_once[1].records
