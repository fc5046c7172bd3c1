"""Commands for experiments: simulation against live runs, the project's studies, the papers' tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.cli.console import EXIT_FAILED, Json, ResultStream, console, messages
from cluster.cli.ends import mistakes_end_it, telling
from cluster.cli.options import Address, Allocators, Out, ScenarioPath, names

if TYPE_CHECKING:
    from cluster.scenario.schema import Scenario
    from reports.schema import Summary


def fidelity(
    scenario: ScenarioPath,
    allocators: Allocators = None,
    out: Out = None,
    as_json: Json = False,
    address: Address = None,
    twice: Annotated[bool, typer.Option("--twice", help="Run live twice, to compare live against live.")] = False,
) -> None:
    """Run a scenario live and simulated with the same arrivals, and report the simulation's error."""
    from cluster.api.errors import input_errors
    from cluster.api.scenarios import load_scenario
    from cluster.experiments.fidelity import AGAIN_FOLDER, LIVE_FOLDER, against_live
    from cluster.run_folder import folder as run_folder
    from reports.fidelity import print_fidelity

    result = ResultStream(as_json)
    with mistakes_end_it(), input_errors():
        loaded = load_scenario(scenario, names(allocators))
        folder = out or run_folder.default_folder(loaded)
        live = _run_live(loaded, folder / LIVE_FOLDER, address)
        again = _run_live(loaded, folder / AGAIN_FOLDER, address) if twice and not live.partial else None
        found = against_live(folder, live, loaded, again)
    result.write(found, lambda: print_fidelity(console, found))
    for warning in found.warnings:
        messages.print(warning, style="bold red", highlight=False)
    messages.print(f"run folders: {folder}", highlight=False, soft_wrap=True)
    if found.partial or not found.valid:
        raise typer.Exit(EXIT_FAILED)


def _run_live(scenario: "Scenario", folder: Path, address: str | None) -> "Summary":
    """The summary of a live run, complete or cut short."""
    from cluster.api.errors import Interrupted
    from cluster.api.runs import run

    try:
        return run(scenario, engine="live", out=folder, address=address, progress=telling()).summary
    except Interrupted as interrupted:
        return interrupted.results.summary


def study(
    name: Annotated[
        Literal["5g", "prompt_vs_cache"],
        typer.Argument(help="5g: hedging on 5G channels; prompt_vs_cache: sending prompts, caches or both."),
    ],
    quick: Annotated[bool, typer.Option(help="A few seconds: fewer requests and channels.")] = False,
    as_json: Json = False,
) -> None:
    """Run one of the project's studies on virtual time, in minutes, and print its table."""
    from cluster.experiments.studies import STUDIES, study_table

    result = ResultStream(as_json)
    found = STUDIES[name](quick)
    result.write(found, lambda: console.print(study_table(found)))


def reproduce(as_json: Json = False) -> None:
    """Recompute the papers' protocol and multi-agent tables, and compare them with the published figures."""
    from cluster.experiments.reproduce import load_published, show
    from cluster.experiments.reproduce import reproduce as compute

    result = ResultStream(as_json)
    found = compute(load_published())
    result.write(found, lambda: show(console, found))
    if not found["agrees"]:
        raise typer.Exit(EXIT_FAILED)
