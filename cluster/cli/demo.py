"""`scout demo`: a first result and a first picture on any machine, then live, then with real models."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.console import EXIT_INTERRUPTED, console, fail, messages, progress
from cluster.cli.options import Address, Engine

if TYPE_CHECKING:
    from cluster.scenario.schema import Scenario
    from reports.schema import Summary

HEADLINE = "congestion.yaml"


class _NotShown(Exception):
    """A part of the demo can't be shown; the message says why in a sentence."""


class _Demo:
    """Parts that are shown one after the other, and the reports on them."""

    def __init__(self, folder: Path, address: str | None) -> None:
        self._began_s = time.monotonic()
        self._address = address
        self.folder = folder
        self.reports: list[Path] = []

    @contextmanager
    def part(self, title: str) -> Iterator[None]:
        """Print a heading; a part that can't be shown ends in a sentence, not in an error."""
        console.rule(f"{title} · {time.monotonic() - self._began_s:.0f} s", align="left")
        try:
            yield
        except _NotShown as reason:
            messages.print(f"Not shown: {reason}", markup=False, highlight=False, soft_wrap=True)

    def run(self, scenario: "Scenario", folder: str, engine: Engine) -> None:
        """Run, print the table, and write the report.

        Raises:
            _NotShown: the run can't start.
        """
        from cluster.run_folder import folder as run_folder
        from cluster.run_folder.accounting import INTERRUPTED
        from reports.page import report_on, write_report
        from reports.table import print_summary

        run_dir = run_folder.create(self.folder / folder, scenario)
        if engine == "simulated":
            from cluster.simulated.engine import run_simulated

            summary = run_simulated(scenario, run_dir)
        else:
            summary = _run_live(scenario, run_dir, self._address)
        print_summary(console, summary)
        _, page = report_on([run_dir])
        self.reports.append(write_report(page, run_dir / "report"))
        if f"PARTIAL: {INTERRUPTED}" in summary.warnings:
            raise typer.Exit(EXIT_INTERRUPTED)
        if summary.partial:
            messages.print("This part ended early, for the reason above; the report has what was measured.")
        elif not summary.valid:
            messages.print(
                "This machine was too busy for this part: its times are no measurement. Its bytes and answers are "
                "real, and the report has them.",
                soft_wrap=True,
            )


def demo(
    out: Annotated[Path | None, typer.Option(help="The folder for all; default: runs/<time>-demo.")] = None,
    models: Annotated[
        bool | None, typer.Option("--models/--no-models", help="Only the part with real models, or all but that.")
    ] = None,
    address: Address = None,
) -> None:
    """Show what Scout does: simulated at once, then live over a shaped link, then with small real models."""
    from cluster.run_folder.folder import RunFolderError, claim
    from cluster.scenario.schema import Scenario
    from models.profiles import builtin_files

    try:
        folder = claim(out or Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-demo")
    except RunFolderError as error:
        fail(error)
    shown = _Demo(folder, address)
    if not models:
        headline = Scenario.load(builtin_files()["family"].parents[1] / HEADLINE)
        with shown.part("The papers' headline, simulated"):
            shown.run(headline, "simulated", "simulated")
            picture = shown.reports[-1].parent / "figures" / f"timeline_{headline.allocator_names[-1]}.png"
            messages.print(f"first picture: {picture}", highlight=False, soft_wrap=True)
        with shown.part("The same live: Ray actors, real bytes over a shaped link"):
            shown.run(headline, "live", "live")
    if models is not False:
        with shown.part("Small real models, at the pace of this machine"):
            shown.run(_real_models(folder), "real-models", "live")
    if shown.reports:
        messages.print(f"\nreport: {shown.reports[-1]}", highlight=False, soft_wrap=True)


def _run_live(scenario: "Scenario", run_dir: Path, address: str | None) -> "Summary":
    from cluster.live.launch import Interrupts, run_live
    from cluster.live.placement import PlacementError
    from cluster.live.preflight import ModelsUnavailable
    from cluster.live.ray_session import RayUnavailable
    from cluster.monitor.progress import Progress
    from netem.helper.session import LinkUnavailable

    try:
        return run_live(scenario, run_dir, address, progress, Interrupts(), Progress(scenario, run_dir, messages))
    except (ModelsUnavailable, PlacementError, RayUnavailable, LinkUnavailable) as error:
        raise _NotShown(f"{error}.") from None
    except KeyboardInterrupt:
        messages.print("interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _real_models(folder: Path) -> "Scenario":
    """The scenario of the small models, as slow as this machine.

    Raises:
        _NotShown: torch or transformers isn't installed.
    """
    from cluster.experiments.own_pace import measure_pace, write_scenario
    from cluster.scenario.schema import Scenario

    try:
        pace = measure_pace()
    except ImportError as error:
        raise _NotShown(f"{error.name} isn't installed: pip install 'scout-emulator[models]'.") from None
    progress(f"this machine runs the models {pace.slowdown:.1f} times as long as their profile says")
    return Scenario.load(write_scenario(pace, folder / "scenario"))
