"""Commands that run nothing: the papers' tables, one allocation problem, one channel."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.console import EXIT_FAILED, Json, ResultStream, console, fail


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (reproduce, allocate, channel):
        app.command()(command)


def reproduce(as_json: Json = False) -> None:
    """Compute the papers' protocol and multi-agent tables anew, beside the published figures."""
    from cluster.experiments.reproduce import load_published, show
    from cluster.experiments.reproduce import reproduce as compute

    result = ResultStream(as_json)
    found = compute(load_published())
    result.write(found, lambda: show(console, found))
    if not found["agrees"]:
        raise typer.Exit(EXIT_FAILED)


def allocate(
    problem: Annotated[Path, typer.Argument(help="A problem file, such as configs/problems/eight-agents.json.")],
    policy: Annotated[str, typer.Option(help="The allocator that answers.")] = "deadline",
    as_json: Json = False,
) -> None:
    """Answer one allocation problem: mode and share of the uplink for each agent, and who can't be served in time."""
    from cluster.experiments.one_problem import allocate as answer_of
    from cluster.experiments.one_problem import show
    from cluster.experiments.problem_file import load_problem

    result = ResultStream(as_json)
    try:
        answer = answer_of(load_problem(problem), policy)
    except ValueError as error:  # a wrong document, an unknown policy, a mode that the policy wants and isn't there
        fail(error)
    result.write(answer, lambda: show(console, answer))


def channel(
    kind: Annotated[
        str, typer.Argument(help="Such as markov, a published 5G scenario (urban_mmwave), a cell (lte_driving).")
    ],
    seed: Annotated[int, typer.Option(help="Equal seeds play equal rates.")] = 42,
    steps: Annotated[int, typer.Option(help="How many rate changes.")] = 20,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as in scenarios, key=value; any number of times.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="As a trace file (`t_s,mbps`) on standard output.")] = False,
    as_json: Json = False,
) -> None:
    """Print the bandwidth sequence that a channel plays."""
    from cluster.experiments.channel_preview import ChannelError, make_channel, play, show, trace_lines

    if as_csv and as_json:
        fail("--csv or --json, not both")
    result = ResultStream(as_json)
    try:
        played = play(make_channel(kind, settings or []), seed, steps)
    except ChannelError as error:
        fail(error)
    if as_csv:
        print("\n".join(trace_lines(played)))
        return
    result.write(played, lambda: show(console, played))
