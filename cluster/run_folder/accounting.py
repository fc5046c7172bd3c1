"""What every run begins and ends with, whichever engine it had: its facts, its ledger, its summary."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from cluster.live import processes
from cluster.run_folder import folder as run_folder
from cluster.run_folder import ledger, timeline
from cluster.run_folder.result import RunResult, Turn
from cluster.scenario.schema import Scenario
from reports.summary import summarize

INTERRUPTED = "interrupted"
STOLEN_LIMIT = 0.05  # of the machine's CPU time
KILLED = "the driver was killed; recovered from journals"


def begin(scenario: Scenario, run_dir: Path, engine: str) -> dict[str, Any]:
    """Write down what is known of a run before it begins; returns it."""
    facts = run_folder.describe_machine() | {"engine": engine, "base_dir": str(scenario.base_dir)}
    facts |= {"pid": os.getpid(), "pid_started": processes.started_at(os.getpid())}
    run_folder.write_json(run_dir / run_folder.RUN_FILE, facts)
    return facts


def recover(run_dir: Path) -> dict[str, Any]:
    """Ledger and summary of a run whose driver was killed, from the journals it left.

    Raises:
        RunFolderError: no such run, or nothing to recover in it.
    """
    facts, scenario = run_folder.read(run_dir)
    if processes.started_at(facts["pid"]) == facts["pid_started"]:
        raise run_folder.RunFolderError(f"{run_dir}: its driver, process {facts['pid']}, is still running")
    names = ledger.journalled_allocators(run_dir, scenario.allocator_names)
    if not names:
        raise run_folder.RunFolderError(f"{run_dir}: no journals, so nothing to recover")
    turns = [Turn(name, timeline.read_journal(run_dir, ledger.journal_folder(run_dir, name), name)) for name in names]
    for turn in turns:
        ledger.read_journals(run_dir, turn)
    return finish(scenario, run_dir, facts, RunResult(turns, [KILLED]))


def finish(scenario: Scenario, run_dir: Path, facts: dict[str, Any], result: RunResult) -> dict[str, Any]:
    """Ledger and summary of a run that has ended, however."""
    lost_reason = "; ".join(result.problems) or "its record was lost"
    rows = ledger.assemble(result.turns, scenario, lost_reason)
    if not result.problems:
        ledger.check_balance(rows, len(scenario.schedule()) * len(result.turns))
    channel = [(turn.allocator, *change) for turn in result.turns for change in turn.channel]
    pd.DataFrame(channel, columns=["allocator", "at_s", "applied_s", "mbps"]).to_csv(
        run_dir / run_folder.CHANNEL_FILE, index=False
    )
    allocators = summarize(rows)
    for turn in result.turns:
        if turn.allocator in allocators:
            solve_ms = pd.Series(turn.solve_ms, dtype=float)
            curve = [float(solve_ms.quantile(p / 100)) for p in range(101)] if len(solve_ms) else []
            allocators[turn.allocator]["solve_ms"] = {"p50": curve[50], "p99": curve[99]} if curve else {}
            allocators[turn.allocator]["solve_curve_ms"] = [float(f"{ms:.4g}") for ms in curve]
            allocators[turn.allocator]["stolen"] = turn.stolen
    late = [
        f"{name}: the emulator started requests {s['lateness_ms']['p99']:.0f} ms late (p99), more than "
        f"{scenario.lateness_limit_ms:g} ms: this run is INVALID; use fewer agents, lower rates or more cores"
        for name, s in allocators.items()
        if (s["lateness_ms"]["p99"] or 0.0) > scenario.lateness_limit_ms
    ]
    for turn in result.turns:
        late_ms = [(applied_s - at_s) * 1e3 for at_s, applied_s, _ in turn.channel if at_s > 0]
        channel_late_ms = pd.Series(late_ms, dtype=float)
        p99_ms = channel_late_ms.quantile(0.99)  # NaN, and so not too late, if it never changed
        if p99_ms > scenario.lateness_limit_ms:
            late.append(
                f"{turn.allocator}: the channel's rates were set {p99_ms:.0f} ms late (p99), more than "
                f"{scenario.lateness_limit_ms:g} ms: this run is INVALID; use slower changes or more cores"
            )
    stolen = [
        f"{turn.allocator}: the host gave {100 * turn.stolen:.0f} % of this machine's CPU time to others: "
        "transfers and answers may be late for that alone"
        for turn in result.turns
        if turn.stolen > STOLEN_LIMIT
    ]
    bases = sorted({profile.quality_basis for profile in scenario.models})
    random_weights = any(real.weights == "random" for real in scenario.real_models.values())
    meaningless = ["random weights: answers mean nothing, qualities are the profile's"] if random_weights else []
    impairments = scenario.impairments
    not_as_set = [f"links: {caveat}" for caveat in impairments.caveats()] if facts["engine"] == "live" else []
    if impairments.active and facts["engine"] == "simulated":
        not_as_set = ["delay and loss are reckoned with in means, jitter and reordering are left out: docs/links.md"]
    mixed = [f"qualities of {len(bases)} bases are averaged here: {'; '.join(bases)}"] if len(bases) > 1 else []
    summary = {
        "title": f"{scenario.name}: {scenario.description}" if scenario.description else scenario.name,
        "scenario": scenario.name,
        "engine": facts["engine"],
        "run_dir": str(run_dir),
        "partial": bool(result.problems),
        "valid": not late,
        "warnings": [f"PARTIAL: {problem}" for problem in result.problems]
        + late
        + stolen
        + mixed
        + meaningless
        + not_as_set,
        "footnote": (
            f"{_how(facts)}{_models(scenario, facts)}, {len(scenario.agent_profiles)} agents, seed {scenario.seed}; "
            "sent MB are wire bytes; credited counts late answers in full, delivered not at all"
        ),
        "quality_bases": bases,
        "issued": len(rows),
        "allocators": allocators,
        "ready_s": round(result.ready_s, 2),
        "events": [
            {"allocator": turn.allocator, **asdict(event)} for turn in result.turns for event in turn.timeline.events
        ],
        "workers": result.workers,
        "memory_mb": result.memory_mb,
        "verified": facts.get("verified"),
        "link": {"kind": facts["link"], "privilege": facts["privilege"], **result.link},
    }
    ledger.write(run_dir, rows)
    timeline.write(run_dir, [turn.timeline for turn in result.turns])
    run_folder.write_json(run_dir / run_folder.SUMMARY_FILE, summary)
    ledger.remove_journals(run_dir)  # not before all else is there: until then they can be recovered from
    return summary


def _how(facts: dict[str, Any]) -> str:
    if facts["engine"] == "simulated":
        return f"simulated in {facts['wall_s']:.1f} s on virtual time, fluid link"
    return f"live on a {facts['link']} link ({facts['privilege']})"


def _models(scenario: Scenario, facts: dict[str, Any]) -> str:
    """Which models ran, of a scenario that has any."""
    if not scenario.real_models:
        return ""
    if facts["engine"] == "simulated":
        return ", from profiles: no model ran"
    pairs = {f"{real.edge} on edges and {real.cloud} in the cloud" for real in scenario.real_models.values()}
    return f", real models: {'; '.join(sorted(pairs))}"
