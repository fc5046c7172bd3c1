"""The command that serves a run's dashboard."""

import asyncio
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.console import fail, messages


def dashboard(
    run: Annotated[Path | None, typer.Argument(help="A run folder; default: the newest below runs/.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port on 127.0.0.1; 0: any free one.")] = 0,
    open_it: Annotated[
        bool,
        typer.Option("--open/--no-open", help="Open the page in a browser; process lists then show the address."),
    ] = False,
) -> None:
    """Serve a page that shows a run while it is going on and can intervene in it, at a secret local address."""
    from cluster.monitor.dashboard import serve
    from cluster.monitor.watcher import newest
    from cluster.run_folder.folder import RunFolderError

    def ready(address: str) -> None:
        messages.print(f"run folder: {folder}; Ctrl-C ends", highlight=False, soft_wrap=True)
        typer.echo(address)
        if open_it:
            webbrowser.open(address)

    try:
        folder = run or newest()
        asyncio.run(serve(folder, port, ready))
    except RunFolderError as error:
        fail(error)
    except OSError as error:
        fail(f"port {port}: {error.strerror}")
