"""Commands that compare allocators over many runs, and report on runs."""

import shlex
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.console import EXIT_FAILED, EXIT_INTERRUPTED, Json, ResultStream, console, fail, progress
from cluster.cli.options import Allocators, Engine, ScenarioPath, names


def compare(
    scenario: ScenarioPath,
    allocators: Allocators = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs, each with its own arrivals and channel.")] = 10,
    engine: Engine = "simulated",
    sweep: Annotated[
        list[str] | None, typer.Option("--sweep", help="A scenario key and its values, key=value,value; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of all runs; default: runs/<time>-<scenario>.")] = None,
    as_json: Json = False,
) -> None:
    """Compare allocators over paired seeds, with confidence intervals and significance tests.

    `equal`, `local_only` and `clairvoyant` (which knows the channel's present rate) are added as baselines.
    """
    from cluster.experiments.compare import Sweep, plan, run_all
    from cluster.run_folder import folder as run_folder
    from cluster.scenario.shipped import find_scenario
    from cluster.scenario.yaml_document import Document, DocumentError
    from cluster.simulated.engine import run_simulated
    from reports.machine import describe_machine
    from reports.schema import ComparisonRuns, Summary

    result = ResultStream(as_json)
    run_one: Callable[..., Summary]
    try:
        sweeps = [Sweep.parse(each) for each in sweep or ()]
        planned = plan(Document.read(find_scenario(scenario)), names(allocators), seeds, sweeps)
        first = planned.runs[0].scenario
        folder = run_folder.claim(out or run_folder.default_folder(first))
        document = ComparisonRuns(
            scenario=first.name,
            engine=engine,
            command=shlex.join(sys.argv),
            machine=describe_machine(),
            compared=planned.compared,
            planned=len(planned.runs),
            runs=[],
        )
        stop = threading.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: stop.set())  # acts between runs; a live run handles signals itself
        if engine == "live":
            from cluster.cli.live import run_live_or_fail

            run_one = partial(run_live_or_fail, address=None)
        else:
            run_one = run_simulated
        run_all(planned, folder, run_one, document, progress, stop.is_set)
    except (DocumentError, run_folder.RunFolderError) as error:
        fail(error)
    whole = _show(result, [folder])
    if stop.is_set() or not whole:
        raise typer.Exit(EXIT_INTERRUPTED if stop.is_set() else EXIT_FAILED)


def report(
    folders: Annotated[list[Path], typer.Argument(help="A run folder, a folder of `scout compare`, or several runs.")],
    out: Annotated[Path | None, typer.Option(help="The report's folder; default: report/ in the first folder.")] = None,
    as_json: Json = False,
) -> None:
    """Write the report on a run, a comparison or several runs: a page, Markdown, figures and tables.

    Partial and damaged runs are reported with a warning about the missing parts.
    """
    result = ResultStream(as_json)
    if not _show(result, folders, out):
        raise typer.Exit(EXIT_FAILED)


def _show(result: ResultStream, folders: list[Path], out: Path | None = None) -> bool:
    """Write the report and print its tables; returns whether there were no warnings."""
    from cluster.cli.reporting import report_or_fail
    from reports.comparison import comparison_tables
    from reports.schema import Comparison
    from reports.table import print_summary

    found, path, warnings = report_or_fail(folders, out)
    document = found.model_dump() | {"warnings": warnings, "report": str(path)}
    if isinstance(found, Comparison):
        result.write(document, lambda: console.print(*comparison_tables(found), sep="\n"))
    else:
        shown = found.model_copy(update={"warnings": []})  # printed already
        result.write(document, lambda: print_summary(console, shown))
    return not warnings
