"""A live run from a command: what keeps it from starting ends the command in a line or two."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cluster.terminal import EXIT_INTERRUPTED, fail, messages

if TYPE_CHECKING:
    from cluster.scenario import Scenario


def run_live_or_fail(loaded: "Scenario", run_dir: Path, address: str | None, watched: bool = False) -> dict[str, Any]:
    """The summary of a live run; its folder goes again if nothing was started."""
    from cluster import runfolder
    from cluster.placement import PlacementError
    from cluster.raysession import RayUnavailable
    from cluster.realmodels import ModelsUnavailable
    from cluster.run import Interrupts, run_live
    from netem.session import LinkUnavailable

    interrupts = Interrupts()
    try:
        return run_live(
            loaded, run_dir, address, lambda line: messages.print(line, highlight=False), interrupts, watched
        )
    except (ModelsUnavailable, PlacementError, RayUnavailable, LinkUnavailable) as error:
        runfolder.discard(run_dir)
        fail(error)
    except KeyboardInterrupt:
        runfolder.discard(run_dir)
        messages.print("interrupted before anything ran")
        raise typer.Exit(EXIT_INTERRUPTED) from None
