"""Reports from commands: where they go, and mistakes in a line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from cluster.cli.console import fail, messages

REPORT_FOLDER = "report"


def report_or_fail(folders: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """Make the report on these folders, by default in the first of them, and name it and what it warns of.

    Returns what was found, with the page's path under `report` and all warnings.
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
        messages.print(f"[bold red]{escape(warning)}[/bold red]", highlight=False)
    messages.print(f"report: {path}", highlight=False, soft_wrap=True)
    return found | {"warnings": list(page.warnings), "report": str(path)}
