"""Commands that run no scenario: solve one allocation problem, print one channel."""

from typing import Annotated

import typer

from cluster.cli.console import Json, ResultStream, console, fail
from cluster.cli.options import ProblemPath


def allocate(
    problem: ProblemPath,
    policy: Annotated[str, typer.Option(help="The allocation policy.")] = "deadline",
    as_json: Json = False,
) -> None:
    """Solve one allocation problem: each agent's mode and uplink share, and the agents whose deadline is infeasible."""
    from cluster.experiments.one_problem import allocate as answer_of
    from cluster.experiments.one_problem import show
    from cluster.experiments.problem_file import load_problem

    result = ResultStream(as_json)
    try:
        answer = answer_of(load_problem(problem), policy)
    except ValueError as error:  # an invalid document, an unknown policy, a mode that the problem lacks
        fail(error)
    result.write(answer, lambda: show(console, answer))


def channel(
    kind: Annotated[
        str, typer.Argument(help="A channel (markov), a published 5G scenario (urban_mmwave) or a cell (lte_driving).")
    ],
    seed: Annotated[int, typer.Option(help="The random seed; equal seeds play equal rates.")] = 42,
    steps: Annotated[int, typer.Option(help="The number of rate changes.")] = 20,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as in scenarios, key=value; repeatable.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a trace file (`t_s,mbps`) on standard output.")] = False,
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
