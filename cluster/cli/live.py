"""A live run from a command; errors at its start end the command with a line or two."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cluster.cli.console import EXIT_INTERRUPTED, fail, messages, progress

if TYPE_CHECKING:
    from cluster.scenario.schema import Scenario
    from reports.schema import Summary


def run_live_or_fail(loaded: "Scenario", run_dir: Path, address: str | None, watched: bool = False) -> "Summary":
    """Run live and return the summary. If the run can't start, remove its folder and end the command."""
    from cluster.live.launch import Interrupts, run_live
    from cluster.live.placement import PlacementError
    from cluster.live.preflight import ModelsUnavailable
    from cluster.live.ray_session import RayUnavailable
    from cluster.monitor.progress import Progress, Watched
    from cluster.run_folder import folder as run_folder
    from netem.helper.session import LinkUnavailable

    interrupts = Interrupts()
    watching = Watched(run_dir, messages) if watched else Progress(loaded, run_dir, messages)
    try:
        return run_live(loaded, run_dir, address, progress, interrupts, watching)
    except (ModelsUnavailable, PlacementError, RayUnavailable, LinkUnavailable) as error:
        run_folder.discard(run_dir)
        fail(error)
    except KeyboardInterrupt:
        run_folder.discard(run_dir)
        messages.print("interrupted before anything ran")
        raise typer.Exit(EXIT_INTERRUPTED) from None
