"""How commands that call the API tell of its progress, and end."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from cluster.cli.console import EXIT_INTERRUPTED, fail, messages

if TYPE_CHECKING:
    from cluster.monitor.progress import Reporting


def telling(full: bool = False) -> "Reporting":
    """Progress on standard error, in logs as well; `full`: all of a live run, on a terminal."""
    from cluster.monitor.progress import Reporting

    return Reporting(messages, in_logs=True, full=full)


@contextmanager
def mistakes_end_it() -> Iterator[None]:
    """End the command with a line or two for the user's mistake, or for an interrupt before anything ran."""
    from cluster.api.errors import ScoutError

    try:
        yield
    except ScoutError as error:
        fail(error)
    except KeyboardInterrupt:
        messages.print("interrupted before anything ran")
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def undisturbed() -> Iterator[None]:
    """What is left takes seconds, and a report must come of it: interrupts are ignored."""
    from cluster.interrupts import Interrupts, ignore

    with Interrupts() as interrupts:
        interrupts.hand_to(ignore)
        yield
