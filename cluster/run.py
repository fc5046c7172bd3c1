"""One live run from scenario to run folder: set up, run, account, tear down, whatever happens in between."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pandas as pd

from cluster import ledger, runfolder
from cluster.live import LiveEngine, LiveResult, Report, Turn
from cluster.placement import place
from cluster.progress import Progress
from cluster.raysession import ray_session
from cluster.scenario import Scenario
from netem.session import LinkSession
from reports.summary import summarize

INTERRUPTED = "interrupted"
KILLED = "the driver was killed; recovered from journals"


def run_live(scenario: Scenario, run_dir: Path, address: str | None, report: Report) -> dict[str, Any]:
    """Run `scenario` live; the run folder and the returned summary are complete even if the run was cut short.

    Raises:
        RayUnavailable, PlacementError, LinkUnavailable: nothing was started.
    """
    facts = runfolder.describe_machine() | {"engine": "live", "base_dir": str(scenario.base_dir)}
    runfolder.write_json(run_dir / runfolder.RUN_FILE, facts)
    with ray_session(address) as session:
        placement = place(scenario, session.cpus, session.gpus)
        if placement.notice:
            report(placement.notice)
        first_mbps = next(iter(scenario.uplink.channel.play(scenario.seed))).mbps
        agents = len(scenario.agent_profiles)
        with LinkSession.start(
            scenario.uplink.link,
            agents=agents,
            workers=scenario.cloud.workers,
            channel_mbps=first_mbps,
            grant_mbps=first_mbps / agents,
            privilege=scenario.uplink.privilege,
        ) as link:
            if link.fallback_reason:
                report(f"link: user-space pacing, less exact than the kernel's: {link.fallback_reason}")
            facts |= {"link": link.kind, "privilege": link.privilege, "fallback_reason": link.fallback_reason}
            runfolder.write_json(run_dir / runfolder.RUN_FILE, facts)
            engine = LiveEngine(scenario, run_dir, session, placement, link, report)
            result = asyncio.run(_until_done_or_stopped(engine, scenario, run_dir))
    return finish(scenario, run_dir, facts, result)


async def _until_done_or_stopped(engine: LiveEngine, scenario: Scenario, run_dir: Path) -> LiveResult:
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, engine.stop, INTERRUPTED)
    with Progress(scenario, run_dir):
        return await engine.run()


def recover(run_dir: Path) -> dict[str, Any]:
    """Ledger and summary of a run whose driver was killed, from the journals it left.

    Raises:
        RunFolderError: no such run, or nothing to recover in it.
    """
    facts, scenario = runfolder.read(run_dir)
    names = ledger.journalled_allocators(run_dir, scenario.allocators)
    if not names:
        raise runfolder.RunFolderError(f"{run_dir}: no journals, so nothing to recover")
    return finish(scenario, run_dir, facts, LiveResult([Turn(name) for name in names], [KILLED]))


def finish(scenario: Scenario, run_dir: Path, facts: dict[str, Any], result: LiveResult) -> dict[str, Any]:
    """Ledger and summary of a run that has ended, however."""
    lost_reason = "; ".join(result.problems) or "its record was lost"
    rows = ledger.assemble(run_dir, scenario, [turn.allocator for turn in result.turns], lost_reason)
    if not result.problems:
        ledger.check_balance(rows, len(scenario.schedule()) * len(result.turns))
    channel = [(turn.allocator, *change) for turn in result.turns for change in turn.channel]
    pd.DataFrame(channel, columns=["allocator", "at_s", "applied_s", "mbps"]).to_csv(
        run_dir / runfolder.CHANNEL_FILE, index=False
    )
    allocators = summarize(rows)
    for turn in result.turns:
        if turn.allocator in allocators:
            solve_ms = pd.Series(turn.solve_ms, dtype=float)
            times = {f"p{p}": float(solve_ms.quantile(p / 100)) for p in (50, 99)} if len(solve_ms) else {}
            allocators[turn.allocator]["solve_ms"] = times
    late = [
        f"{name}: the emulator started requests {s['lateness_ms']['p99']:.0f} ms late (p99), more than "
        f"{scenario.lateness_limit_ms:g} ms: this run is INVALID; use fewer agents, lower rates or more cores"
        for name, s in allocators.items()
        if (s["lateness_ms"]["p99"] or 0.0) > scenario.lateness_limit_ms
    ]
    summary = {
        "title": f"{scenario.name}: {scenario.description}" if scenario.description else scenario.name,
        "scenario": scenario.name,
        "run_dir": str(run_dir),
        "partial": bool(result.problems),
        "valid": not late,
        "warnings": [f"PARTIAL: {problem}" for problem in result.problems] + late,
        "footnote": (
            f"live on a {facts['link']} link ({facts['privilege']}), {len(scenario.agent_profiles)} agents, seed "
            f"{scenario.seed}; sent MB are wire bytes; credited counts late answers in full, delivered not at all"
        ),
        "issued": len(rows),
        "allocators": allocators,
        "ready_s": round(result.ready_s, 2),
        "workers": result.workers,
        "link": {"kind": facts["link"], "privilege": facts["privilege"], **result.link},
    }
    ledger.write(run_dir, rows)
    runfolder.write_json(run_dir / runfolder.SUMMARY_FILE, summary)
    return summary
