"""One live run from scenario to run folder: set up, run, account, tear down, whatever happens in between."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd

from cluster import ledger, runfolder, watch
from cluster.live import LiveEngine, LiveResult, Report, Turn
from cluster.placement import place
from cluster.progress import Progress
from cluster.raysession import ray_session
from cluster.scenario import Scenario
from netem.session import LinkSession
from netem.wire import MIN_RATE_MBPS
from reports.summary import summarize

INTERRUPTED = "interrupted"
KILLED = "the driver was killed; recovered from journals"


class Interrupts:
    """SIGINT and SIGTERM until the engine takes them: raised as KeyboardInterrupt, and remembered.

    Libraries that are starting up may swallow the exception; `check` raises it again. Shells start background jobs deaf
    to SIGINT, so this also restores that.
    """

    def __init__(self) -> None:
        self._come = False
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._take)

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal has come."""
        if self._come:
            raise KeyboardInterrupt

    def _take(self, signum: int, frame: object) -> None:
        self._come = True
        raise KeyboardInterrupt


def run_live(
    scenario: Scenario, run_dir: Path, address: str | None, report: Report, interrupts: Interrupts
) -> dict[str, Any]:
    """Run `scenario` live; the run folder and the returned summary are complete even if the run was cut short.

    Raises:
        RayUnavailable, PlacementError, LinkUnavailable, KeyboardInterrupt: nothing was started.
    """
    facts = runfolder.describe_machine() | {"engine": "live", "base_dir": str(scenario.base_dir)}
    facts |= {"pid": os.getpid(), "pid_started": watch.started_at(os.getpid())}
    runfolder.write_json(run_dir / runfolder.RUN_FILE, facts)
    with ray_session(address) as session:
        interrupts.check()
        placement = place(scenario, session.cpus, session.gpus, session.gpus_in_all)
        if placement.notice:
            report(placement.notice)
        first_mbps = next(iter(scenario.uplink.channel.play(scenario.seed))).mbps
        agents = len(scenario.agent_profiles)
        with LinkSession.start(
            scenario.uplink.link,
            agents=agents,
            workers=scenario.cloud.workers,
            channel_mbps=first_mbps,
            grant_mbps=max(first_mbps / agents, MIN_RATE_MBPS),
            privilege=scenario.uplink.privilege,
        ) as link:
            if link.fallback_reason:
                report(f"link: user-space pacing, less exact than the kernel's: {link.fallback_reason}")
            facts |= {"link": link.kind, "privilege": link.privilege, "fallback_reason": link.fallback_reason}
            runfolder.write_json(run_dir / runfolder.RUN_FILE, facts)
            interrupts.check()
            engine = LiveEngine(scenario, run_dir, session, placement, link, report)
            result = asyncio.run(_until_done_or_stopped(engine, scenario, run_dir))
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_IGN)  # what is left takes seconds, and a report must come of it
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
    if watch.started_at(facts["pid"]) == facts["pid_started"]:
        raise runfolder.RunFolderError(f"{run_dir}: its driver, process {facts['pid']}, is still running")
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
    for turn in result.turns:
        late_ms = [(applied_s - at_s) * 1e3 for at_s, applied_s, _ in turn.channel if at_s > 0]
        channel_late_ms = pd.Series(late_ms, dtype=float)
        p99_ms = channel_late_ms.quantile(0.99)  # NaN, and so not too late, if it never changed
        if p99_ms > scenario.lateness_limit_ms:
            late.append(
                f"{turn.allocator}: the channel's rates were set {p99_ms:.0f} ms late (p99), more than "
                f"{scenario.lateness_limit_ms:g} ms: this run is INVALID; use slower changes or more cores"
            )
    bases = sorted({profile.quality_basis for profile in scenario.models})
    mixed = [f"qualities of {len(bases)} bases are averaged here: {'; '.join(bases)}"] if len(bases) > 1 else []
    summary = {
        "title": f"{scenario.name}: {scenario.description}" if scenario.description else scenario.name,
        "scenario": scenario.name,
        "run_dir": str(run_dir),
        "partial": bool(result.problems),
        "valid": not late,
        "warnings": [f"PARTIAL: {problem}" for problem in result.problems] + late + mixed,
        "footnote": (
            f"live on a {facts['link']} link ({facts['privilege']}), {len(scenario.agent_profiles)} agents, seed "
            f"{scenario.seed}; sent MB are wire bytes; credited counts late answers in full, delivered not at all"
        ),
        "quality_bases": bases,
        "issued": len(rows),
        "allocators": allocators,
        "ready_s": round(result.ready_s, 2),
        "workers": result.workers,
        "link": {"kind": facts["link"], "privilege": facts["privilege"], **result.link},
    }
    ledger.write(run_dir, rows)
    runfolder.write_json(run_dir / runfolder.SUMMARY_FILE, summary)
    ledger.remove_journals(run_dir)  # not before all else is there: until then they can be recovered from
    return summary
