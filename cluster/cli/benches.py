"""`scout bench` of links, allocation policies and the simulated engine."""

from dataclasses import asdict
from typing import Annotated

import typer

from cluster.cli.console import EXIT_FAILED, Json, ResultStream, console, fail, progress
from cluster.cli.options import Link


def links(
    link: Link = "auto",
    quick: Annotated[bool, typer.Option(help="A minute: fewer repeats, no long transfers.")] = False,
    as_json: Json = False,
) -> None:
    """Measure transfer times, fairness, reaction to rate changes, the shared hop's cap and delays of links."""
    from netem.bench import bench_links, bench_tables
    from netem.helper.session import LinkUnavailable

    result = ResultStream(as_json)
    try:
        found = bench_links(link, quick=quick, progress=progress)
    except LinkUnavailable as error:
        fail(error)
    result.write(found, lambda: console.print(*bench_tables(found), sep="\n"))


def cycles(
    count: Annotated[int, typer.Option(min=1, max=100_000, help="The number of links to start.")] = 1000,
    link: Link = "auto",
    as_json: Json = False,
) -> None:
    """Start and stop links repeatedly, kill some helpers, and count the resources that leaked. Takes minutes."""
    from netem.bench.cycles import bench_cycles, cycles_table
    from netem.helper.session import LinkUnavailable

    result = ResultStream(as_json)
    try:
        found = bench_cycles(count, link, progress=progress)
    except LinkUnavailable as error:
        fail(error)
    result.write(found, lambda: console.print(cycles_table(found)))


def allocator(
    quick: Annotated[bool, typer.Option(help="Half a minute: fewer and smaller problems.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the policies' optimality gap and decision time. Takes minutes."""
    from allocator.bench.accuracy import bench_allocator, bench_tables
    from reports.machine import describe_machine

    result = ResultStream(as_json)
    found = bench_allocator(quick, progress=progress)
    machine = describe_machine()
    document = {"machine": machine, **asdict(found)}
    result.write(document, lambda: console.print(*bench_tables(found, machine.line()), sep="\n"))
    if not found.passed:
        raise typer.Exit(EXIT_FAILED)


def simulate(
    quick: Annotated[bool, typer.Option(help="A few seconds: 64 agents only.")] = False, as_json: Json = False
) -> None:
    """Measure the simulated engine's speed: requests per second with 64, 1,000 and 10,000 agents."""
    from cluster.experiments.simulation_speed import bench_simulate, simulate_table
    from reports.machine import describe_machine

    result = ResultStream(as_json)
    runs = bench_simulate(quick, progress=progress)
    machine = describe_machine()
    result.write({"machine": machine, "runs": runs}, lambda: console.print(simulate_table(runs, machine.line())))
