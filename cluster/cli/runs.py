"""Commands that run scenarios: here, as a Ray job, or to the end after a crash; and what this machine can run."""

import re
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.console import EXIT_FAILED, EXIT_INTERRUPTED, Json, ResultStream, console, fail, messages
from cluster.cli.ends import mistakes_end_it, telling, undisturbed
from cluster.cli.options import Address, Allocators, Engine, Out, ScenarioPath, names

JOB_ID = r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,127}"


def run(
    scenario: ScenarioPath,
    allocators: Allocators = None,
    engine: Engine = "live",
    out: Out = None,
    report: Annotated[bool, typer.Option("--report", help="Also write the report into the run folder.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Show the run on the terminal while it is going on.")] = False,
    as_json: Json = False,
    address: Address = None,
) -> None:
    """Run a scenario: one turn for each allocator, with the same arrivals and channel."""
    from cluster.api.errors import Interrupted
    from cluster.api.runs import run as run_scenario
    from cluster.cli.reporting import show_report
    from reports.table import print_summary

    if live and engine == "simulated":
        fail("--live shows live runs; a simulated run is over too soon to watch")
    result = ResultStream(as_json)
    exit_code = None
    with mistakes_end_it():
        try:
            results = run_scenario(
                scenario, engine=engine, allocators=names(allocators), out=out, address=address, progress=telling(live)
            )
        except Interrupted as interrupted:
            results, exit_code = interrupted.results, EXIT_INTERRUPTED
    with undisturbed():
        summary = results.summary
        result.write(summary, lambda: print_summary(console, summary))
        messages.print(f"run folder: {results.folder}", highlight=False, soft_wrap=True)
        if report:
            show_report([results.folder])
    if exit_code is None and (summary.partial or not summary.valid):
        exit_code = EXIT_FAILED
    if exit_code is not None:
        raise typer.Exit(exit_code)


def submit(
    scenario: ScenarioPath,
    allocators: Allocators = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder here, into which the result is fetched; default: runs/<id>.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="The cluster's dashboard; default: RAY_API_SERVER_ADDRESS, else port 8265 of this machine."),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option("--id", help="The job's id; the same again is the same run. Default: <time>-<scenario>."),
    ] = None,
    working_dir: Annotated[Path, typer.Option(help="What is uploaded; the scenario is in it.")] = Path(),
    runtime_env: Annotated[Path | None, typer.Option(help="A YAML file with Ray's runtime environment.")] = None,
    there: Annotated[
        str | None,
        typer.Option(help="The run folder in the cluster, as on a volume; default: among Ray's logs of the node."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it running; the same --id again follows it.")] = False,
) -> None:
    """Run a scenario as a job on a running Ray cluster, follow its log, and fetch the run folder."""
    from cluster.live.ray_job import Submission, SubmitError, read_runtime_env
    from cluster.live.ray_job import submit as submit_job
    from cluster.live.ray_session import RayUnavailable
    from cluster.run_folder import folder as run_folder
    from cluster.scenario.schema import DocumentError, Scenario

    try:
        loaded = Scenario.load(scenario, names(allocators))
        default = run_folder.default_folder(loaded)
        name = job or (out or default).name
        if not re.fullmatch(JOB_ID, name):
            raise SubmitError(f"--id {name!r}: letters, digits, '.', '_', '+' and '-', at most 128")
        folder = (out or default.with_name(name)).resolve()
        environment = read_runtime_env(runtime_env)
        asked = Submission(scenario, loaded, allocators, folder, name, working_dir, there, environment, detach)
        succeeded = submit_job(asked, address)
    except (DocumentError, SubmitError, RayUnavailable) as error:
        fail(error)
    if not succeeded:
        raise typer.Exit(EXIT_FAILED)


def recover(run_dir: Annotated[Path, typer.Argument(help="A killed run's folder.")], as_json: Json = False) -> None:
    """Complete the ledger and the summary of a run whose driver was killed, and mark the run as partial."""
    from cluster.run_folder.accounting import recover as recover_run
    from cluster.run_folder.folder import RunFolderError
    from reports.table import print_summary

    result = ResultStream(as_json)
    try:
        summary = recover_run(run_dir)
    except RunFolderError as error:
        fail(error)
    result.write(summary, lambda: print_summary(console, summary))


def doctor(as_json: Json = False) -> None:
    """List this machine's capabilities, with a remedy for each missing one."""
    from cluster.live.doctor import examine, show

    result = ResultStream(as_json)
    findings = examine()
    result.write(findings, lambda: show(console, findings))
