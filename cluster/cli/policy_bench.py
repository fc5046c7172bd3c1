"""`scout bench policies`."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.console import EXIT_FAILED, EXIT_INTERRUPTED, Json, ResultStream, console, fail, messages
from cluster.cli.ends import mistakes_end_it, telling, undisturbed
from cluster.cli.options import names

if TYPE_CHECKING:
    from cluster.experiments.policy_cells import Plan
    from reports.schema import PolicyBench

Many = list[str] | None


def policies(
    uplink: Annotated[
        Many, typer.Option("--uplink", help="A trace file (CSV or Mahimahi) or a shipped uplink; repeatable.")
    ] = None,
    workload: Annotated[
        Many, typer.Option("--workload", help="A workload file, or chat, code or long_document; repeatable.")
    ] = None,
    chosen: Annotated[
        str | None, typer.Option("--policies", help="Policies, separated by commas; deadline is judged if among them.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=1000, help="Runs of each cell; default 3.")] = None,
    duration: Annotated[
        float | None, typer.Option(min=1, max=86_400, help="Seconds that requests come in each run; default 120.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="Half a minute: eight cells, one seed of 30 s.")] = False,
    processes: Annotated[int, typer.Option(min=1, max=1024, help="Processes; default: one a core.")] = os.cpu_count()
    or 1,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder; one of the same bench is gone on with. Default: runs/<time>-policies."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare policies with trivial ones and with an upper bound: uplinks, workloads, modes, cloud load, loss.

    A user's uplinks and workloads take the place of those that ship. Ctrl-C ends it with what there is.
    """
    from cluster.api.errors import input_errors
    from cluster.experiments.policy_bench import POLICIES
    from cluster.experiments.policy_cells import plan

    result = ResultStream(as_json)
    folder = out or Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-policies"
    with mistakes_end_it(), input_errors():
        runs_s = duration or (30.0 if quick else 120.0)
        planned = plan(names(chosen) or POLICIES, uplink, workload, seeds or (1 if quick else 3), runs_s, quick)
        document, interrupted, died = _run(planned, folder, processes)
    if not document.units:
        if died:
            fail(died)
        messages.print("interrupted before any run ended")
        raise typer.Exit(EXIT_INTERRUPTED)
    _show(result, document, folder, died)
    if interrupted or died:
        raise typer.Exit(EXIT_INTERRUPTED if interrupted else EXIT_FAILED)


def _run(planned: "Plan", folder: Path, processes: int) -> "tuple[PolicyBench, bool, str]":
    """The document, whether the user interrupted it, and what ended it otherwise."""
    from cluster.experiments import policy_bench
    from cluster.interrupts import Interrupts, ignore

    document = policy_bench.begin(planned, folder)
    with Interrupts() as interrupts:
        interrupts.hand_to(ignore)  # what runs is told by `come`
        try:
            policy_bench.run(planned, document, folder, processes, lambda: interrupts.come, telling().line)
        except policy_bench.WorkerDied as error:
            return document, interrupts.come, str(error)
        return document, interrupts.come, ""


def _show(result: ResultStream, document: "PolicyBench", folder: Path, died: str) -> None:
    """Write the report, and print table, verdict and warnings."""
    from cluster.api.errors import input_errors
    from reports.page import write_report
    from reports.policy_bench import bench_page, bench_table, partial, regret, verdict

    with undisturbed(), mistakes_end_it(), input_errors():
        page = write_report(bench_page(document), folder / "report")
    lines, warnings = [verdict(document), regret(document)], [*partial(document), *([died] if died else [])]
    shown = document.model_dump() | {"verdict": lines[0], "regret": lines[1], "warnings": warnings, "report": str(page)}
    result.write(shown, lambda: console.print(bench_table(document), *filter(None, lines), sep="\n"))
    for line in warnings:
        messages.print(line, style="bold red", highlight=False)
    messages.print(f"report: {page}", highlight=False, soft_wrap=True)
