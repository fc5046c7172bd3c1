"""The beginning and the end of every run, with either engine: its facts, its ledger, its summary."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from allocator.problem import Gap
from cluster.processes import started_at
from cluster.run_folder import folder as run_folder
from cluster.run_folder import ledger, timeline
from cluster.run_folder.result import RunResult, Turn
from cluster.scenario.schema import Scenario
from reports import files
from reports.machine import describe_machine
from reports.schema import AllocatorSummary, LinkUse, RunFacts, SolveGaps, SolveTime, Summary, TimelineEvent
from reports.summary import summarize

INTERRUPTED = "interrupted"
STOLEN_LIMIT = 0.05  # of the machine's CPU time
KILLED = "the driver was killed; recovered from journals"
PERCENTILES = range(101)


def begin(scenario: Scenario, run_dir: Path, engine: str) -> RunFacts:
    """Write the facts that are known before a run; returns them."""
    pid = os.getpid()
    machine = describe_machine().model_dump()
    facts = RunFacts(**machine, engine=engine, base_dir=str(scenario.base_dir), pid=pid, pid_started=started_at(pid))
    facts.write(run_dir / files.RUN)
    return facts


def recover(run_dir: Path) -> Summary:
    """Make ledger and summary of a run whose driver was killed from its journals.

    Raises:
        RunFolderError: there is no such run, it is still on, or it has no journals.
    """
    facts, scenario = run_folder.read(run_dir)
    if run_folder.is_running(facts):
        raise run_folder.RunFolderError(f"{run_dir}: its driver, process {facts.pid}, is still running")
    names = ledger.journalled_allocators(run_dir, scenario.allocator_names)
    if not names:
        raise run_folder.RunFolderError(f"{run_dir}: no journals, so nothing to recover")
    turns = [Turn(name, timeline.read_journal(run_dir, files.turn_journal(run_dir, name), name)) for name in names]
    for turn in turns:
        ledger.read_journals(run_dir, turn)
    return finish(scenario, run_dir, facts, RunResult(turns, [KILLED]))


def finish(scenario: Scenario, run_dir: Path, facts: RunFacts, result: RunResult) -> Summary:
    """Write ledger, timeline, channel and summary of a run, complete or cut short; returns the summary."""
    lost_reason = "; ".join(result.problems) or "its record was lost"
    rows = ledger.assemble(result.turns, scenario, lost_reason)
    summary = _summary(scenario, run_dir, facts, result, rows)
    channel = [(turn.allocator, *change) for turn in result.turns for change in turn.channel]
    pd.DataFrame(channel, columns=["allocator", "at_s", "applied_s", "mbps"]).to_csv(
        run_dir / files.CHANNEL, index=False
    )
    ledger.write(run_dir, rows)
    timeline.write(run_dir, [turn.timeline for turn in result.turns])
    summary.write(run_dir / files.SUMMARY)
    ledger.remove_journals(run_dir)  # last: until all else is written, the run can be recovered from them
    return summary


def _summary(scenario: Scenario, run_dir: Path, facts: RunFacts, result: RunResult, rows: pd.DataFrame) -> Summary:
    allocators = summarize(rows)
    for turn in result.turns:
        if turn.allocator in allocators:
            _add_turn(allocators[turn.allocator], turn)
    late = [*_late_starts(scenario, allocators), *_late_rates(scenario, result), *_slowed(result)]
    partial = [f"PARTIAL: {problem}" for problem in result.problems]
    link = LinkUse(kind=facts.link, privilege=facts.privilege, **(vars(result.link) if result.link else {}))
    events = [
        TimelineEvent(allocator=turn.allocator, **asdict(event))
        for turn in result.turns
        for event in turn.timeline.events
    ]
    return Summary(
        title=f"{scenario.name}: {scenario.description}" if scenario.description else scenario.name,
        scenario=scenario.name,
        engine=facts.engine,
        run_dir=str(run_dir),
        partial=bool(result.problems),
        valid=not late,
        warnings=[*partial, *late, *_caveats(scenario, facts, result)],
        footnote=_footnote(scenario, facts),
        quality_bases=_quality_bases(scenario),
        scheduled=len(rows),
        issued=sum(one.issued for one in allocators.values()),
        allocators=allocators,
        ready_s=round(result.ready_s, 2),
        events=events,
        workers=result.workers,
        memory_mb=result.memory_mb,
        verified=facts.verified,
        link=link,
        nodes=result.nodes,
        relay=result.relay,
    )


def _add_turn(summary: AllocatorSummary, turn: Turn) -> None:
    """Add the figures of a turn that aren't in the ledger."""
    summary.stolen = turn.stolen
    summary.solve_gaps = _gaps(turn.gaps)
    if turn.solve_ms:
        solve_ms = pd.Series(turn.solve_ms, dtype=float)
        curve = [float(solve_ms.quantile(p / 100)) for p in PERCENTILES]
        summary.solve_ms = SolveTime(p50=curve[50], p99=curve[99])
        summary.solve_curve_ms = [float(f"{ms:.4g}") for ms in curve]


def _gaps(gaps: list[Gap]) -> SolveGaps:
    """The distribution of certificates."""
    if not gaps:
        return SolveGaps()
    quality = np.percentile([gap.quality for gap in gaps], PERCENTILES)
    proved = sum(gap.weight == 0 for gap in gaps) / len(gaps)
    return SolveGaps(solves=len(gaps), met_proved=proved, curve=[float(f"{share:.4g}") for share in quality])


def _late_starts(scenario: Scenario, allocators: dict[str, AllocatorSummary]) -> Iterator[str]:
    """Turns that are invalid because requests didn't start in time."""
    for name, summary in allocators.items():
        p99_ms = summary.lateness_ms.p99 or 0.0
        if p99_ms > scenario.lateness_limit_ms:
            yield (
                f"{name}: the emulator started requests {p99_ms:.0f} ms late (p99), more than "
                f"{scenario.lateness_limit_ms:g} ms: this run is INVALID; use fewer agents, lower rates or more cores"
            )


def _late_rates(scenario: Scenario, result: RunResult) -> Iterator[str]:
    """Turns that are invalid because the channel's rates weren't set in time."""
    for turn in result.turns:
        late_ms = pd.Series([(applied_s - at_s) * 1e3 for at_s, applied_s, _ in turn.channel if at_s > 0], dtype=float)
        p99_ms = late_ms.quantile(0.99)  # NaN, and so not too late, if the rate never changed
        if p99_ms > scenario.lateness_limit_ms:
            yield (
                f"{turn.allocator}: the channel's rates were set {p99_ms:.0f} ms late (p99), more than "
                f"{scenario.lateness_limit_ms:g} ms: this run is INVALID; use slower changes or more cores"
            )


def _slowed(result: RunResult) -> Iterator[str]:
    """Nodes to which the network underneath became too slow."""
    for node in result.nodes:
        if node.slow:
            yield (
                f"the network to node {node.address} ({node.hostname}) slowed down: {node.slow}: this run is INVALID; "
                "use a faster network, or a slower channel"
            )


def _caveats(scenario: Scenario, facts: RunFacts, result: RunResult) -> Iterator[str]:
    """Reasons to read a valid run's figures with care."""
    for turn in result.turns:
        if turn.stolen > STOLEN_LIMIT:
            yield (
                f"{turn.allocator}: the host gave {100 * turn.stolen:.0f} % of this machine's CPU time to others: "
                "transfers and answers may be late for that alone"
            )
    bases = _quality_bases(scenario)
    if len(bases) > 1:
        yield f"qualities of {len(bases)} bases are averaged here: {'; '.join(bases)}"
    if any(real.weights == "random" for real in scenario.real_models.values()):
        yield "random weights: answers mean nothing, qualities are the profile's"
    yield from _beyond(scenario)
    if facts.engine == "live":
        yield from (f"links: {caveat}" for caveat in scenario.impairments.caveats())
    elif scenario.impairments.active:
        yield "delay and loss are reckoned with in means, jitter and reordering are left out: docs/links.md"


def _beyond(scenario: Scenario) -> Iterator[str]:
    """Profiles whose times were measured at other lengths than the requests have."""
    if not scenario.arrivals.sized:
        return
    asked = [arrival.lengths.context_tokens for arrival in scenario.schedule() if arrival.lengths is not None]
    for profile in scenario.models:
        if profile.lengths is not None and asked:
            shortest, longest = profile.lengths.contexts
            outside = sum(not shortest <= tokens <= longest for tokens in asked) / len(asked)
            if outside:
                yield (
                    f"{100 * outside:.0f} % of contexts ({min(asked):,} to {max(asked):,} tokens) are outside of the "
                    f"{shortest:,} to {longest:,} tokens that {profile.name} was measured at: times by formula"
                )


def _quality_bases(scenario: Scenario) -> list[str]:
    return sorted({profile.quality_basis for profile in scenario.models})


def _footnote(scenario: Scenario, facts: RunFacts) -> str:
    if facts.engine == "simulated":
        how = f"simulated in {facts.wall_s or 0.0:.1f} s on virtual time, fluid link"
    else:
        how = f"live on a {facts.link} link ({facts.privilege})"
    return (
        f"{how}{_models(scenario, facts)}, {len(scenario.agent_profiles)} agents, seed {scenario.seed}; "
        "sent MB are wire bytes; credited counts late answers in full, delivered not at all"
    )


def _models(scenario: Scenario, facts: RunFacts) -> str:
    """The models that ran, of a scenario that has any."""
    if not scenario.real_models:
        return ""
    if facts.engine == "simulated":
        return ", from profiles: no model ran"
    pairs = {f"{real.edge} on edges and {real.cloud} in the cloud" for real in scenario.real_models.values()}
    return f", real models: {'; '.join(sorted(pairs))}"
