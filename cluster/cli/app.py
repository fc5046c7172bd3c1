"""The `scout` command: assembled here from the groups of commands beside this file.

A user's mistake ends in one or two lines on standard error and exit code 2.
"""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cluster.cli import (
    benches,
    characterize,
    compare,
    dashboard,
    demo,
    experiments,
    model_benches,
    models,
    policy_bench,
    problems,
    runs,
    scenarios,
)

app = typer.Typer(
    name="scout",
    help="Emulate edge-cloud LLM inference: agents and cloud on Ray, real bytes over shaped links.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure the emulator itself.", no_args_is_help=True)
app.add_typer(bench, name="bench")

# Every command, in the order of `scout --help`; its name is the function's.
COMMANDS: tuple[Callable[..., Any], ...] = (
    demo.demo,
    runs.run,
    runs.submit,
    runs.recover,
    runs.doctor,
    scenarios.init,
    scenarios.schema,
    dashboard.dashboard,
    compare.compare,
    compare.report,
    experiments.fidelity,
    experiments.study,
    experiments.reproduce,
    problems.allocate,
    problems.channel,
    problems.workload,
    models.calibrate,
    models.quality,
    characterize.characterize,
    characterize.claims,
)
BENCHES: tuple[Callable[..., Any], ...] = (
    benches.links,
    benches.cycles,
    benches.allocator,
    policy_bench.policies,
    benches.simulate,
    model_benches.codec,
    model_benches.scoring,
    model_benches.decode,
)

for command in COMMANDS:
    app.command()(command)
for command in BENCHES:
    bench.command()(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from reports.machine import version_of

        print(f"scout {version_of('scout-emulator')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point of `scout`."""
    app()


if __name__ == "__main__":
    main()
