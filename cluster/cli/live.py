"""A live run from a command: what keeps it from starting ends the command in a line or two."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cluster.cli.console import EXIT_INTERRUPTED, fail, messages

if TYPE_CHECKING:
    from cluster.scenario.schema import Scenario


def run_live_or_fail(loaded: "Scenario", run_dir: Path, address: str | None, watched: bool = False) -> dict[str, Any]:
    """The summary of a live run; its folder goes again if nothing was started."""
    from cluster.live.launch import Interrupts, run_live
    from cluster.live.placement import PlacementError
    from cluster.live.preflight import ModelsUnavailable
    from cluster.live.ray_session import RayUnavailable
    from cluster.run_folder import folder as run_folder
    from netem.helper.session import LinkUnavailable

    interrupts = Interrupts()
    try:
        return run_live(
            loaded, run_dir, address, lambda line: messages.print(line, highlight=False), interrupts, watched
        )
    except (ModelsUnavailable, PlacementError, RayUnavailable, LinkUnavailable) as error:
        run_folder.discard(run_dir)
        fail(error)
    except KeyboardInterrupt:
        run_folder.discard(run_dir)
        messages.print("interrupted before anything ran")
        raise typer.Exit(EXIT_INTERRUPTED) from None
