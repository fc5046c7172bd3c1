"""Commands that compare allocators over many runs."""

import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cluster.cli.console import EXIT_FAILED, EXIT_INTERRUPTED, Json, ResultStream, console, fail, messages


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (compare, report):
        app.command()(command)


def compare(
    scenario: Annotated[Path, typer.Argument(help="A scenario file, such as configs/poisson.yaml.")],
    allocators: Annotated[
        str | None, typer.Option("--allocators", help="Those to compare, by comma; default: the scenario's.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Runs, each with arrivals and a channel of its own.")
    ] = 10,
    engine: Annotated[Literal["live", "simulated"], typer.Option(help="What runs them.")] = "simulated",
    sweep: Annotated[
        list[str] | None, typer.Option("--sweep", help="key=value,value,... of the scenario; any number of times.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of all runs; default: runs/<time>-<scenario>.")] = None,
    as_json: Json = False,
) -> None:
    """Run allocators on the same arrivals and channels with many seeds, and say which is better, if that can be said.

    `equal`, `local_only` and `clairvoyant` (which knows the channel's present rate) run along, for orientation.
    """
    from cluster.experiments.compare import Sweep, plan, run_all
    from cluster.run_folder import folder as run_folder
    from cluster.scenario.yaml_document import Document, DocumentError
    from cluster.simulated.engine import run_simulated

    result = ResultStream(as_json)
    try:
        names = [name.strip() for name in allocators.split(",")] if allocators else None
        planned = plan(Document.read(scenario), names, seeds, [Sweep.parse(each) for each in sweep or ()])
        first = planned.runs[0].scenario
        folder = run_folder.claim(out or run_folder.default_folder(first))
        facts: dict[str, Any] = {"scenario": first.name, "engine": engine, "command": shlex.join(sys.argv)}
        facts["machine"] = run_folder.describe_machine()
        stop = threading.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, lambda *_: stop.set())  # between runs; a run that is on ends itself, too
        if engine == "live":
            from cluster.cli.live import run_live_or_fail

            run_all(planned, folder, lambda s, run_dir: run_live_or_fail(s, run_dir, None), facts, _say, stop.is_set)
        else:
            run_all(planned, folder, run_simulated, facts, _say, stop.is_set)
    except (DocumentError, run_folder.RunFolderError) as error:
        fail(error)
    whole = _show(result, [folder])
    if stop.is_set() or not whole:
        raise typer.Exit(EXIT_INTERRUPTED if stop.is_set() else EXIT_FAILED)


def report(
    folders: Annotated[list[Path], typer.Argument(help="A run folder, one of `scout compare`, or several runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the report goes; default: report/ in the first folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the report on a run, a comparison, or several runs: a page, Markdown, figures, tables. Also of partial runs.

    What is missing or damaged is said, the rest is shown.
    """
    result = ResultStream(as_json)
    if not _show(result, folders, out):
        raise typer.Exit(EXIT_FAILED)


def _show(result: ResultStream, folders: list[Path], out: Path | None = None) -> bool:
    """Tables, and the report; whether there was nothing to warn of."""
    from cluster.cli.reporting import report_or_fail
    from reports.comparison import comparison_tables
    from reports.table import print_summary

    found = report_or_fail(folders, out)
    if "points" in found:
        result.write(found, lambda: console.print(*comparison_tables(found), sep="\n"))
    else:
        shown = found | {"warnings": []}  # they have been printed
        result.write(found, lambda: print_summary(console, shown))
    return not found["warnings"]


def _say(line: str) -> None:
    messages.print(line, highlight=False)
