"""Reports from commands: their path, their warnings."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cli.console import messages
from cluster.cli.ends import mistakes_end_it

if TYPE_CHECKING:
    from cluster.api.results import WrittenReport


def show_report(folders: Sequence[Path], out: Path | None = None) -> "WrittenReport":
    """Write the report on these folders, by default into the first, and print its path and warnings."""
    from cluster.api.results import write_report_on

    with mistakes_end_it():
        written = write_report_on(folders, out)
    for warning in written.warnings:
        messages.print(warning, style="bold red", highlight=False)
    messages.print(f"report: {written.path}", highlight=False, soft_wrap=True)
    return written
