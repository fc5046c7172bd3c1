"""`scout demo`: a first result and a first picture on any machine, then live, then with real models."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.console import EXIT_INTERRUPTED, console, fail, messages, progress
from cluster.cli.ends import mistakes_end_it, telling, undisturbed
from cluster.cli.options import Address, Engine

if TYPE_CHECKING:
    from cluster.scenario.schema import Scenario

HEADLINE = "congestion"


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
            messages.print(f"Not shown: {reason}", highlight=False, soft_wrap=True)

    def run(self, scenario: "Scenario", folder: str, engine: Engine) -> None:
        """Run, print the table, and write the report.

        Raises:
            _NotShown: the run can't start.
        """
        from cluster.api.errors import Interrupted, UnavailableError
        from cluster.api.runs import run
        from reports.table import print_summary

        interrupted = False
        with mistakes_end_it():
            try:
                folder_of_it = self.folder / folder
                results = run(scenario, engine=engine, out=folder_of_it, address=self._address, progress=telling())
            except UnavailableError as error:
                raise _NotShown(f"{error}.") from None
            except Interrupted as error:
                results, interrupted = error.results, True
        with undisturbed():
            summary = results.summary
            print_summary(console, summary)
            self.reports.append(results.report())
        if interrupted:
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
    from cluster.scenario.shipped import scenarios

    try:
        folder = claim(out or Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-demo")
    except RunFolderError as error:
        fail(error)
    shown = _Demo(folder, address)
    if not models:
        headline = Scenario.load(scenarios()[HEADLINE])
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
