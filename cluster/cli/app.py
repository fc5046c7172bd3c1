"""The `scout` command: assembled here from the groups of commands beside this file.

A user's mistake ends in one or two lines on standard error and exit code 2.
"""

from collections.abc import Callable
from typing import Any

import typer

from cluster.cli import benches, compare, dashboard, experiments, model_benches, models, problems, runs

app = typer.Typer(
    name="scout",
    help="Emulate edge-cloud LLM inference: agents and cloud on Ray, real bytes over shaped links.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Measure the emulator itself.", no_args_is_help=True)
app.add_typer(bench, name="bench")

# Every command, in the order of `scout --help`; its name is the function's.
COMMANDS: tuple[Callable[..., Any], ...] = (
    runs.run,
    runs.submit,
    runs.recover,
    runs.doctor,
    dashboard.dashboard,
    compare.compare,
    compare.report,
    experiments.fidelity,
    experiments.study,
    experiments.reproduce,
    problems.allocate,
    problems.channel,
    models.calibrate,
    models.quality,
)
BENCHES: tuple[Callable[..., Any], ...] = (
    benches.links,
    benches.cycles,
    benches.allocator,
    benches.simulate,
    model_benches.codec,
    model_benches.scoring,
    model_benches.decode,
)

for command in COMMANDS:
    app.command()(command)
for command in BENCHES:
    bench.command()(command)


def main() -> None:
    """The entry point of `scout`."""
    app()


if __name__ == "__main__":
    main()
