"""Commands that compare allocators over many runs, and report on runs."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.console import EXIT_FAILED, EXIT_INTERRUPTED, Json, ResultStream, console
from cluster.cli.ends import mistakes_end_it, telling, undisturbed
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

    `equal`, `local_only` and `rate_oracle` (which knows the channel's present rate) are added as baselines; simulated,
    an upper bound on what any allocator could have had stands beside them.
    """
    from cluster.api.comparisons import compare as compare_allocators
    from cluster.api.errors import Interrupted, input_errors
    from cluster.experiments.compare import Sweep

    result = ResultStream(as_json)
    interrupted = False
    with mistakes_end_it():
        try:
            with input_errors():
                sweeps = [Sweep.parse(each) for each in sweep or ()]
            results = compare_allocators(
                scenario,
                allocators=names(allocators),
                seeds=seeds,
                engine=engine,
                sweep=sweeps,
                out=out,
                progress=telling(),
            )
        except Interrupted as error:
            results, interrupted = error.results, True
    with undisturbed():
        whole = _show(result, [results.folder])
    if interrupted or not whole:
        raise typer.Exit(EXIT_INTERRUPTED if interrupted else EXIT_FAILED)


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
    from cluster.cli.reporting import show_report
    from reports.comparison import comparison_tables
    from reports.schema import Comparison
    from reports.table import print_summary

    written = show_report(folders, out)
    found, warnings = written.found, list(written.warnings)
    document = found.model_dump() | {"warnings": warnings, "report": str(written.path)}
    if isinstance(found, Comparison):
        result.write(document, lambda: console.print(*comparison_tables(found), sep="\n"))
    else:
        shown = found.model_copy(update={"warnings": []})  # printed already
        result.write(document, lambda: print_summary(console, shown))
    return not warnings
