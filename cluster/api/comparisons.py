"""Comparisons of allocators over seeds: `scout compare`, and `scout.compare` in Python."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from cluster.api.errors import InputError, Interrupted, input_errors
from cluster.api.results import ComparisonResults
from cluster.api.runs import ONE_AT_A_TIME, Engine, check_engine, run_one
from cluster.api.scenarios import AnyAllocator, AnyScenario, document_of, entries_of
from cluster.experiments.compare import Plan, Sweep, plan, run_all
from cluster.interrupts import Interrupts
from cluster.monitor.progress import Reporting
from cluster.run_folder import folder as run_folder
from cluster.scenario.schema import Scenario
from reports import files
from reports.machine import command_line, describe_machine
from reports.schema import ComparisonRuns, Summary

MAX_SEEDS = 1000


def compare(
    scenario: AnyScenario,
    *,
    allocators: Sequence[AnyAllocator] | None = None,
    seeds: int = 10,
    engine: Engine = "simulated",
    sweep: Mapping[str, Sequence[Any]] | Sequence[Sweep] | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    address: str | None = None,
    progress: bool | Reporting | None = None,
) -> ComparisonResults:
    """Compare allocators over paired seeds, with confidence intervals and significance tests.

    `equal`, `local_only` and `rate_oracle` (which knows the channel's present rate) are added as baselines. What isn't
    described here is as for `run`.

    Args:
        seeds: the number of runs, each with arrivals and a channel of its own, from the scenario's seed on.
        sweep: scenario keys and the values that they take in turn, such as `{"uplink.channel.mbps": [50, 100]}`.
        out: the folder of all runs, new or empty; default: `runs/<time>-<scenario>`.

    Raises:
        InputError, UnavailableError, Interrupted, KeyboardInterrupt: as `run` does.
    """
    check_engine(engine)
    if not 1 <= seeds <= MAX_SEEDS:
        raise InputError(f"seeds: {seeds}; there may be 1 to {MAX_SEEDS}")
    reporting = progress if isinstance(progress, Reporting) else Reporting.to(progress)
    with ONE_AT_A_TIME, Interrupts() as interrupts:
        with input_errors():
            sweeps = [Sweep.of(*pair) for pair in sweep.items()] if isinstance(sweep, Mapping) else list(sweep or ())
            planned = plan(document_of(scenario, overrides), entries_of(allocators), seeds, sweeps)
            first = planned.runs[0].scenario
            folder = run_folder.claim(Path(out)) if out is not None else run_folder.claim_default(first)
        document = _run_all(planned, folder, engine, address, reporting, interrupts)
    if interrupts.come and not document.runs:
        (folder / files.COMPARISON).unlink()
        run_folder.discard(folder)
        raise KeyboardInterrupt
    results = ComparisonResults(folder)
    if interrupts.come:
        raise Interrupted(results)
    return results


def _run_all(
    planned: Plan, folder: Path, engine: Engine, address: str | None, reporting: Reporting, interrupts: Interrupts
) -> ComparisonRuns:
    """Make the planned runs; returns the document that lists those that were made."""
    document = ComparisonRuns(
        scenario=planned.runs[0].scenario.name,
        engine=engine,
        command=command_line(),
        machine=describe_machine(),
        compared=planned.compared,
        planned=len(planned.runs),
        runs=[],
    )
    bars = engine == "simulated" and reporting.watched

    def one(scenario: Scenario, run_dir: Path) -> Summary:
        return run_one(scenario, run_dir, engine, address, Reporting() if bars else reporting, interrupts)

    def tell(line: str) -> None:
        if not bars:
            reporting.line(line)

    title = f"{document.scenario}, {len(planned.runs)} runs"
    watching = reporting.bar(title, len(planned.runs), lambda: len(document.runs)) if bars else nullcontext()
    with input_errors(), watching:
        run_all(planned, folder, one, document, tell, lambda: interrupts.come)
    return document
