"""Reports from commands; mistakes end the command with one line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cli.console import fail, messages

if TYPE_CHECKING:
    from reports.schema import Comparison, Summary

REPORT_FOLDER = "report"


def report_or_fail(folders: Sequence[Path], out: Path | None = None) -> "tuple[Summary | Comparison, Path, list[str]]":
    """Write the report on these folders, by default into the first, and print its path and warnings.

    Returns the reported results, the page's path and its warnings.
    """
    from reports.comparison import ComparisonError
    from reports.page import report_on, write_report
    from reports.runs import ReportError

    try:
        found, page = report_on(folders)
        path = write_report(page, out or folders[0] / REPORT_FOLDER)
    except (ComparisonError, ReportError) as error:
        fail(error)
    for warning in page.warnings:
        messages.print(warning, style="bold red", highlight=False)
    messages.print(f"report: {path}", highlight=False, soft_wrap=True)
    return found, path, list(page.warnings)
