"""Reports from commands: where they go, and mistakes in a line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.terminal import fail

if TYPE_CHECKING:
    from reports.page import Page

REPORT_FOLDER = "report"


def report_or_fail(folders: Sequence[Path], out: Path | None = None) -> "tuple[Page, Path]":
    """What the report on these folders says, and where its page is: by default in the first folder."""
    from reports.comparison import ComparisonError
    from reports.page import report_on, write_report
    from reports.runs import ReportError

    try:
        page = report_on(folders)
        return page, write_report(page, out or folders[0] / REPORT_FOLDER)
    except (ComparisonError, ReportError) as error:
        fail(error)
