"""What runs have left, for Python and notebooks: tables as pandas frames, typed summaries, figures, reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from cluster.api.errors import InputError, input_errors
from cluster.api.plots import Figures, Plots
from reports import files
from reports.comparison import read_comparison
from reports.runs import Run, read_run
from reports.schema import Comparison, Summary
from reports.summary import requests_by

REPORT_FOLDER = "report"


class Results:
    """What is in a folder of results.

    Attributes:
        folder: where it all is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report: a page, Markdown, figures and tables; returns the page's path.

        Args:
            out: its folder; default: `report` in the folder of the results.

        Raises:
            InputError: the results can't be read, or the report can't be written.
        """
        return write_report_on([self.folder], out).path


class RunResults(Results):
    """What came of a run.

    Attributes:
        summary: the figures of every allocator, warnings, and whether the run is partial or invalid.
    """

    def __init__(self, folder: Path, summary: Summary) -> None:
        super().__init__(folder)
        self.summary = summary

    @cached_property
    def _run(self) -> Run:
        with input_errors():
            return read_run(self.folder)

    @property
    def scenario(self) -> dict[str, Any]:
        """The scenario as resolved, with every default."""
        return self._run.scenario

    @property
    def ledger(self) -> pd.DataFrame:
        """A row for each request and allocator: times in ms, rates in Mbit/s."""
        return self._run.ledger

    @property
    def timeline(self) -> pd.DataFrame:
        """How things stood, five times a second of each turn; empty if the run left none."""
        return self._run.timeline

    def requests_by(self, *columns: str) -> pd.DataFrame:
        """The requests counted by the values of these columns of the ledger, such as `allocator`, `mode`.

        Shares are from 0 to 1, latencies are in ms and of answered requests.

        Raises:
            InputError: no such column.
        """
        return _requests_by(self.ledger, columns)

    @property
    def plot(self) -> Plots:
        """The figures of the report: `plot.slack()`, `plot.timeline("deadline")`."""
        return Plots(self._figures)

    def _figures(self) -> Figures:
        from reports.figures import FIGURES, pooled

        ledger = pooled([self._run])
        return {name: partial(make, [self._run], ledger) for name, make in FIGURES.items()}

    def _repr_html_(self) -> str:
        from reports.page import run_fragment

        return run_fragment(self._run)

    def __repr__(self) -> str:
        met = ", ".join(f"{name} {s.compliance:.1%}" for name, s in self.summary.allocators.items())
        partial = "partial, " if self.summary.partial else ""
        return f"<{partial}{self.summary.engine} run of {self.summary.scenario}: met by {met}; {self.folder}>"


def _requests_by(ledger: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    if not columns:
        raise InputError("requests_by needs at least one column, such as 'allocator'")
    for column in columns:
        if column not in ledger.columns:
            raise InputError(f"no column {column!r}; there are {', '.join(map(str, ledger.columns))}")
    return requests_by(ledger, list(columns))


class ComparisonResults(Results):
    """What came of a comparison, or of several runs of one scenario."""

    def __init__(self, folder: Path, summary: Comparison | None = None) -> None:
        super().__init__(folder)
        if summary is not None:
            self.__dict__["summary"] = summary  # read already

    @cached_property
    def summary(self) -> Comparison:
        """Figures and verdicts at every point of the sweep, and warnings about runs that are missing."""
        with input_errors():
            return read_comparison(self.folder)

    @cached_property
    def runs(self) -> list[RunResults]:
        """The runs that the statistics are of."""
        return [load_run(folder) for folder in self.summary.folders]

    @cached_property
    def ledger(self) -> pd.DataFrame:
        """The requests of all runs, as in `RunResults.ledger`, with the run's `folder` and `seed`."""
        return self._all("ledger")

    @cached_property
    def timeline(self) -> pd.DataFrame:
        """The timelines of all runs, likewise."""
        return self._all("timeline")

    def _all(self, table: str) -> pd.DataFrame:
        frames = [
            getattr(run, table).assign(folder=str(run.folder), seed=run.scenario.get("seed")) for run in self.runs
        ]
        return pd.concat(frames, ignore_index=True)

    def requests_by(self, *columns: str) -> pd.DataFrame:
        """As `RunResults.requests_by`, of all runs together; `seed` and `folder` are columns too."""
        return _requests_by(self.ledger, columns)

    @property
    def figures(self) -> pd.DataFrame:
        """A row for each point of the sweep and allocator: counts, and means over seeds with 95 % intervals."""
        rows = []
        for point in self.summary.points:
            for name, own in point.figures.items():
                intervals = {"compliance_percent": own.compliance, "delivered_quality": own.delivered_quality}
                spread = {
                    f"{metric}{suffix}": value
                    for metric, found in intervals.items()
                    for suffix, value in (("", found.mean), ("_low", found.low), ("_high", found.high))
                }
                rows.append(point.point | {"allocator": name, "seeds": point.seeds} | own.counts() | spread)
        return pd.DataFrame(rows)

    @property
    def verdicts(self) -> pd.DataFrame:
        """A row for each point, metric and pair of allocators: which is better, by how much, and how sure that is."""
        return pd.DataFrame([p.point | v.model_dump() for p in self.summary.points for v in p.verdicts])

    @property
    def plot(self) -> Plots:
        """The figures of the report: those of a run, and `plot.load()`, `plot.tradeoff()`, `plot.differences()`."""
        return Plots(self._figures)

    def _figures(self) -> Figures:
        from reports.comparison_figures import FIGURES as OF_COMPARISONS
        from reports.figures import FIGURES, pooled

        runs = [run._run for run in self.runs]
        same = [run for run in runs if run.scenario.get("uplink") == runs[0].scenario.get("uplink")]
        compared: Figures = {name: partial(make, self.summary) for name, make in OF_COMPARISONS.items()}
        ledger = pooled(same)
        return compared | {name: partial(make, same, ledger) for name, make in FIGURES.items()}

    def _repr_html_(self) -> str:
        from reports.page import comparison_fragment

        return comparison_fragment(self.summary, self.folder)

    def __repr__(self) -> str:
        return f"<comparison of {', '.join(self.summary.compared)} on {self.summary.scenario}; {self.folder}>"


@dataclass(frozen=True)
class WrittenReport:
    """A report, with the results that it is on."""

    found: Summary | Comparison
    path: Path
    warnings: Sequence[str]


def write_report_on(folders: Sequence[Path], out: str | Path | None = None) -> WrittenReport:
    """Write the report on a run, a comparison or several runs of one scenario.

    Args:
        out: its folder; default: `report` in the first folder.

    Raises:
        InputError: nothing there can be read, or the report can't be written.
    """
    from reports.page import report_on, write_report

    with input_errors():
        found, page = report_on(folders)
        path = write_report(page, Path(out) if out is not None else folders[0] / REPORT_FOLDER)
    return WrittenReport(found, path, page.warnings)


def load(*folders: str | Path) -> RunResults | ComparisonResults:
    """The results in a run folder, in a folder of `compare`, or in several run folders of one scenario.

    Raises:
        InputError: there are none, or they can't be read.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise InputError("load needs a folder")
    if len(paths) == 1 and not (paths[0] / files.COMPARISON).exists():
        return load_run(paths[0])
    with input_errors():
        return ComparisonResults(paths[0], read_comparison(*paths))


def load_run(folder: str | Path) -> RunResults:
    """The results in a run folder. Raises InputError."""
    with input_errors():
        run = read_run(Path(folder))
    results = RunResults(run.folder, run.summary)
    results.__dict__["_run"] = run  # read already
    return results
