"""The command line. Every mistake of a user's ends in one or two lines on standard error and exit code 2."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cluster.cli import benches, compare, dashboard, models, problems
from cluster.cli.console import EXIT_FAILED, EXIT_INTERRUPTED, Json, ResultStream, console, fail, messages
from cluster.cli.live import run_live_or_fail

app = typer.Typer(
    name="scout",
    help="Emulates edge-cloud LLM inference: agents and cloud on Ray, real bytes over shaped links.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure the emulator itself.", no_args_is_help=True)
app.add_typer(bench, name="bench")

ScenarioPath = Annotated[Path, typer.Argument(help="A scenario file, such as configs/congestion.yaml.")]
Allocators = Annotated[
    str | None, typer.Option("--allocator", help="One or several, by comma; default: the scenario's.")
]
Engine = Annotated[
    Literal["live", "simulated"], typer.Option(help="On Ray and real links, or on virtual time and a fluid link.")
]
Out = Annotated[Path | None, typer.Option(help="The run folder; default: runs/<time>-<scenario>.")]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster, or `auto`; default: RAY_ADDRESS, else one of our own.")
]

DashboardAddress = Annotated[
    str | None,
    typer.Option("--address", help="The cluster's dashboard; default: RAY_API_SERVER_ADDRESS, else port 8265."),
]


@app.command()
def run(
    scenario: ScenarioPath,
    allocator: Allocators = None,
    engine: Engine = "live",
    out: Out = None,
    report: Annotated[bool, typer.Option("--report", help="Also make the report: report/ in the run folder.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Show the run on the terminal as it goes.")] = False,
    as_json: Json = False,
    address: Address = None,
) -> None:
    """Run a scenario, one turn for each allocator with the same arrivals and channel.

    Live: Ray actors, real bytes. Simulated: the same agents, cloud and allocators on virtual time.
    """
    from cluster.run_folder import folder as run_folder
    from cluster.scenario.schema import DocumentError, Scenario

    if live and engine == "simulated":
        fail("--live shows live runs; a simulated one is over before anybody could look")
    result = ResultStream(as_json)
    try:
        loaded = Scenario.load(scenario, _names(allocator))
        run_dir = run_folder.create(out, loaded)
    except (DocumentError, run_folder.RunFolderError) as error:
        fail(error)
    if engine == "simulated":
        from cluster.simulated.engine import run_simulated

        _show_run(result, run_simulated(loaded, run_dir), report)
    else:
        _show_run(result, run_live_or_fail(loaded, run_dir, address, live and messages.is_terminal), report)


def _show_run(result: ResultStream, summary: dict[str, Any], report: bool = False) -> None:
    """The table, perhaps the report, and the exit code that a run deserves."""
    from cluster.run_folder.accounting import INTERRUPTED
    from reports.table import print_summary

    result.write(summary, lambda: print_summary(console, summary))
    messages.print(f"run folder: {summary['run_dir']}", highlight=False, soft_wrap=True)
    if report:
        from cluster.cli.reporting import report_or_fail

        report_or_fail([Path(summary["run_dir"])])
    if f"PARTIAL: {INTERRUPTED}" in summary["warnings"]:
        raise typer.Exit(EXIT_INTERRUPTED)
    if summary["partial"] or not summary["valid"]:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def fidelity(
    scenario: ScenarioPath,
    allocator: Allocators = None,
    out: Out = None,
    as_json: Json = False,
    address: Address = None,
    twice: Annotated[
        bool, typer.Option("--twice", help="Run live again: how far one live run is from another.")
    ] = False,
) -> None:
    """Run a scenario live and simulated with the same arrivals, and say how far the simulation is off, and where."""
    from cluster.experiments.fidelity import AGAIN_FOLDER, LIVE_FOLDER, against_live
    from cluster.run_folder import folder as run_folder
    from cluster.scenario.schema import DocumentError, Scenario
    from reports.fidelity import print_fidelity

    result = ResultStream(as_json)
    try:
        loaded = Scenario.load(scenario, _names(allocator))
        folder = out or run_folder.default_folder(loaded)
        live = run_live_or_fail(loaded, run_folder.create(folder / LIVE_FOLDER, loaded), address)
        again = None
        if twice and not live["partial"]:
            again = run_live_or_fail(loaded, run_folder.create(folder / AGAIN_FOLDER, loaded), address)
        found = against_live(folder, live, loaded, again)
    except (DocumentError, run_folder.RunFolderError) as error:
        fail(error)
    result.write(found, lambda: print_fidelity(console, found))
    for warning in found["warnings"]:
        messages.print(f"[bold red]{warning}[/bold red]", highlight=False)
    messages.print(f"run folders: {folder}", highlight=False, soft_wrap=True)
    if found["partial"] or not found["valid"]:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def submit(
    scenario: ScenarioPath, allocator: Allocators = None, out: Out = None, address: DashboardAddress = None
) -> None:
    """Run a scenario as a job on a running Ray cluster (`ray start --head`) and follow its log."""
    from cluster.live.ray_job import SubmitError
    from cluster.live.ray_job import submit as submit_job
    from cluster.live.ray_session import RayUnavailable
    from cluster.run_folder import folder as run_folder
    from cluster.scenario.schema import DocumentError, Scenario

    try:
        loaded = Scenario.load(scenario, _names(allocator))
        succeeded = submit_job(scenario, allocator, out or run_folder.default_folder(loaded), address)
    except (DocumentError, SubmitError, RayUnavailable) as error:
        fail(error)
    if not succeeded:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def recover(
    run_dir: Annotated[Path, typer.Argument(help="The run folder that a killed run left.")], as_json: Json = False
) -> None:
    """Complete the ledger and the summary of a run whose driver was killed, marked as partial."""
    from cluster.run_folder.accounting import recover as recover_run
    from cluster.run_folder.folder import RunFolderError
    from reports.table import print_summary

    result = ResultStream(as_json)
    try:
        summary = recover_run(run_dir)
    except RunFolderError as error:
        fail(error)
    result.write(summary, lambda: print_summary(console, summary))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, and what to do about each thing that it can't."""
    from cluster.live.doctor import examine, show

    result = ResultStream(as_json)
    findings = examine()
    result.write([asdict(finding) for finding in findings], lambda: show(console, findings))


@app.command()
def study(
    name: Annotated[Literal["5g", "border"], typer.Argument(help="5g: hedging; border: prompts against caches.")],
    quick: Annotated[bool, typer.Option(help="A few seconds: fewer requests and channels.")] = False,
    as_json: Json = False,
) -> None:
    """Run one of our experiments on virtual time (minutes), and print its table."""
    from cluster.experiments.studies import STUDIES, study_table

    result = ResultStream(as_json)
    found = STUDIES[name](quick)
    result.write(found, lambda: console.print(study_table(found)))


@bench.command("links")
def bench_links(
    link: Annotated[Literal["auto", "kernel", "paced"], typer.Option(help="Which link to measure.")] = "auto",
    quick: Annotated[bool, typer.Option(help="A minute: fewer repeats, no long transfers.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the links: transfer times against ideal, fairness, how soon changes act, the shared hop's cap, delay."""
    from netem.bench import bench_links as measure
    from netem.bench import bench_tables
    from netem.helper.session import LinkUnavailable

    result = ResultStream(as_json)
    try:
        found = measure(link, quick=quick, progress=lambda line: messages.print(line, highlight=False))
    except LinkUnavailable as error:
        fail(error)
    result.write(found, lambda: console.print(*bench_tables(found), sep="\n"))


@bench.command("cycles")
def bench_cycles(
    count: Annotated[int, typer.Option(min=1, max=100_000, help="How often.")] = 1000,
    link: Annotated[Literal["auto", "kernel", "paced"], typer.Option(help="Which link.")] = "auto",
    as_json: Json = False,
) -> None:
    """Start and stop links over and over, some killed at a random moment, and look for what is left. Some minutes."""
    from netem.bench.cycles import bench_cycles as measure
    from netem.bench.cycles import cycles_table
    from netem.helper.session import LinkUnavailable

    result = ResultStream(as_json)
    try:
        found = measure(count, link, progress=lambda line: messages.print(line, highlight=False))
    except LinkUnavailable as error:
        fail(error)
    result.write(found, lambda: console.print(cycles_table(found)))


@bench.command("allocator")
def bench_allocator(
    quick: Annotated[bool, typer.Option(help="Half a minute: fewer and smaller problems.")] = False,
    as_json: Json = False,
) -> None:
    """Measure the policies: how near to the best answer, and how long a decision takes. Some minutes."""
    from allocator.bench.accuracy import bench_allocator as measure
    from allocator.bench.accuracy import bench_tables

    result = ResultStream(as_json)
    found = measure(quick, progress=lambda line: messages.print(line, highlight=False))
    result.write(found, lambda: console.print(*bench_tables(found), sep="\n"))
    if not found["passed"]:
        raise typer.Exit(EXIT_FAILED)


@bench.command("simulate")
def bench_simulate(
    quick: Annotated[bool, typer.Option(help="A few seconds: 64 agents only.")] = False, as_json: Json = False
) -> None:
    """Measure the simulated engine: requests per second with 64 agents, and runs with 1,000 and 10,000."""
    from cluster.experiments.simulation_speed import bench_simulate as measure
    from cluster.experiments.simulation_speed import simulate_table

    result = ResultStream(as_json)
    found = measure(quick, progress=lambda line: messages.print(line, highlight=False))
    result.write(found, lambda: console.print(simulate_table(found)))


benches.register(bench)
problems.register(app)
models.register(app)
compare.register(app)
dashboard.register(app)


def _names(allocators: str | None) -> list[str] | None:
    return None if allocators is None else [name.strip() for name in allocators.split(",")]


def main() -> None:
    """The `scout` command."""
    app()


if __name__ == "__main__":
    main()
