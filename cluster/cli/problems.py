"""Commands that run no scenario: solve one allocation problem, print one channel, describe one workload."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.console import Json, ResultStream, console, fail
from cluster.cli.ends import mistakes_end_it
from cluster.cli.options import ProblemPath


def allocate(
    problem: ProblemPath,
    policy: Annotated[str, typer.Option(help="The allocation policy.")] = "deadline",
    as_json: Json = False,
) -> None:
    """Solve one allocation problem: each agent's mode and uplink share, and the agents whose deadline is infeasible."""
    from cluster.api.problems import allocate as answer_of
    from cluster.experiments.one_problem import show

    result = ResultStream(as_json)
    with mistakes_end_it():
        answer = answer_of(problem, policy).document
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
    from cluster.api.errors import InputError
    from cluster.api.problems import channel as played_by
    from cluster.experiments.channel_preview import ChannelError, parse_settings, show, trace_lines

    if as_csv and as_json:
        fail("--csv or --json, not both")
    result = ResultStream(as_json)
    try:
        played = played_by(kind, seed=seed, steps=steps, settings=parse_settings(settings or [])).document
    except (ChannelError, InputError) as error:
        fail(error)
    if as_csv:
        print("\n".join(trace_lines(played)))
        return
    result.write(played, lambda: show(console, played))


def workload(
    source: Annotated[str, typer.Argument(help="A workload file, or chat, code or long_document (generated).")],
    seed: Annotated[int, typer.Option(min=0, help="The random seed of a generated workload.")] = 42,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting as in scenarios, key=value; repeatable.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A PNG file for a picture of it.")] = None,
    as_json: Json = False,
) -> None:
    """Print what a workload is like: its rate, the variation of its gaps, its lengths."""
    from cluster.experiments.channel_preview import ChannelError, parse_settings
    from cluster.experiments.workload_preview import WorkloadError, describe, picture, show

    result = ResultStream(as_json)
    try:
        given = parse_settings(settings or [])
        found = describe(source, given, seed)
        if plot is not None:
            plot.write_bytes(picture(source, given, seed).png)
    except (ChannelError, WorkloadError) as error:
        fail(error)
    except OSError as error:
        fail(f"{plot} can't be written: {error.strerror}")
    result.write(found, lambda: show(console, found))
