"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def _scenario_names(incomplete: str) -> list[str]:
    """For shells' completion; where it has none to offer, shells complete files."""
    from cluster.scenario.shipped import scenarios

    return [name for name in scenarios() if name.startswith(incomplete)]


def _problem_names(incomplete: str) -> list[str]:
    from cluster.scenario.shipped import problems

    return [name for name in problems() if name.startswith(incomplete)]


ScenarioPath = Annotated[
    Path,
    typer.Argument(
        help="A scenario file, or the name of a scenario that ships with Scout, such as congestion.",
        autocompletion=_scenario_names,
    ),
]
ProblemPath = Annotated[
    Path,
    typer.Argument(
        help="A problem file, or the name of a problem that ships with Scout, such as eight-agents.",
        autocompletion=_problem_names,
    ),
]
Allocators = Annotated[
    str | None, typer.Option("--allocators", help="Allocators, separated by commas; default: the scenario's.")
]
Engine = Annotated[
    Literal["live", "simulated"],
    typer.Option(help="live: Ray and real links; simulated: virtual time and a fluid link."),
]
Out = Annotated[Path | None, typer.Option(help="The run folder; default: runs/<time>-<scenario>.")]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster, or `auto`; default: RAY_ADDRESS, else a new local one.")
]
Link = Annotated[Literal["auto", "kernel", "paced"], typer.Option(help="The kind of link to measure.")]


def names(text: str | None) -> list[str] | None:
    """The names in an option's comma-separated list; None if the option wasn't given."""
    return None if text is None else [name.strip() for name in text.split(",")]
