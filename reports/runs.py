"""Reads a run folder for a report. Missing and damaged files become warnings; only the ledger must be there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pyarrow import parquet

from agents.record import STAGES
from configs.reading import check_file, read_text
from configs.yaml_text import load_yaml
from reports import files
from reports.schema import AllocatorSummary, LinkUse, RunFacts, Summary, TimelineEvent
from reports.summary import summarize

MAX_TABLE_BYTES = 2**31
MAX_ROWS = 50_000_000
MAX_SCENARIO_BYTES = 2**22  # with every default written out
LEDGER_COLUMNS = {
    "allocator", "request_id", "agent_id", "round", "intended_s", "deadline_ms", "status", "reason", "mode",
    "latency_ms", "predicted_ms", "payload_bytes", "wire_bytes", "quality_credited", "quality_delivered",
    *(f"{stage}_ms" for stage in STAGES),
}  # fmt: skip
TIMELINE_COLUMNS = {
    "allocator", "at_s", "channel_mbps", "estimate_mbps", "used_mbps", "in_flight", "grants_mbps",
}  # fmt: skip


class ReportError(ValueError):
    """Nothing to report on; the message says why in a line."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        facts: None if run.json is missing or damaged.
        scenario: as resolved.
        summary: as in summary.json, with figures and warnings from the files that are there.
        ledger: a row for each request and allocator, in the order of turns.
        timeline: a row for each moment of a turn (empty if there is none).
    """

    folder: Path
    facts: RunFacts | None
    scenario: dict[str, Any]
    summary: Summary
    ledger: pd.DataFrame
    timeline: pd.DataFrame

    @property
    def name(self) -> str:
        """The scenario's name."""
        return str(self.scenario.get("name") or self.folder.name)

    @property
    def allocators(self) -> dict[str, AllocatorSummary]:
        """Figures by allocator, in the order of turns."""
        return self.summary.allocators

    @property
    def events(self) -> list[TimelineEvent]:
        """Interventions and faults."""
        return self.summary.events

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt the figures."""
        return self.summary.warnings


Found = TypeVar("Found")


def read_run(folder: Path) -> Run:
    """Read all that can be read of a run.

    Raises:
        ReportError: there is no ledger, or it can't be read.
    """
    ledger = _read_ledger(folder)
    warnings: list[str] = []

    def read(name: str, parse: Callable[[Path], Found]) -> Found | None:
        """The file's content, or None with a warning."""
        try:
            return parse(folder / name)
        except FileNotFoundError:
            warnings.append(f"{name} is missing: its part of the report is left out")
        except (OSError, ValueError) as error:
            warnings.append(f"{name} is damaged ({one_line(error)}): its part of the report is left out")
        return None

    facts = read(files.RUN, RunFacts.read)
    scenario = read(files.SCENARIO, _read_scenario) or {}
    summary = read(files.SUMMARY, Summary.read) or _without_summary(folder, facts, scenario)
    timeline = read(files.TIMELINE, lambda path: _has(_read_table(path), TIMELINE_COLUMNS))
    counted = summarize(ledger)
    for name, one in counted.items():
        if told := summary.allocators.get(name):
            differing = [key for key, value in one.counts().items() if told.counts()[key] != value]
            if differing:
                warnings.append(
                    f"{name}: ledger and summary differ in {', '.join(differing)}; the report counts the ledger"
                )
            one.solve_ms, one.solve_curve_ms, one.stolen = told.solve_ms, told.solve_curve_ms, told.stolen
    summary.allocators, summary.scheduled = counted, len(ledger)
    summary.issued = sum(one.issued for one in counted.values())
    summary.warnings = summary.warnings + warnings
    return Run(folder, facts, scenario, summary, ledger, pd.DataFrame() if timeline is None else timeline)


def _read_ledger(folder: Path) -> pd.DataFrame:
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder")
    path = folder / files.LEDGER
    if not path.exists():
        raise ReportError(f"{folder}: {_without_ledger(folder)}")
    try:
        return _has(_read_table(path), LEDGER_COLUMNS)
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: damaged: {one_line(error)}") from None


def _read_scenario(path: Path) -> dict[str, Any]:
    found = load_yaml(read_text(path, MAX_SCENARIO_BYTES))
    if not isinstance(found, dict):
        raise ValueError("not a mapping")
    return found


def _read_table(path: Path) -> pd.DataFrame:
    check_file(path, MAX_TABLE_BYTES)
    rows = parquet.read_metadata(path).num_rows
    if rows > MAX_ROWS:
        raise ValueError(f"{rows:,} rows; at most {MAX_ROWS:,} are read")
    return pd.read_parquet(path)


def _without_summary(folder: Path, facts: RunFacts | None, scenario: dict[str, Any]) -> Summary:
    """A summary of a run without one: whether it was cut short or valid is not known."""
    return Summary(
        title="",
        scenario=str(scenario.get("name") or folder.name),
        engine=facts.engine if facts else "",
        run_dir=str(folder),
        partial=False,
        valid=True,
        warnings=[],
        footnote="",
        quality_bases=[],
        scheduled=0,
        issued=0,
        allocators={},
        ready_s=0.0,
        events=[],
        workers=[],
        memory_mb={},
        verified=facts.verified if facts else None,
        link=LinkUse(kind=facts.link if facts else None, privilege=facts.privilege if facts else None),
    )


def one_line(error: BaseException) -> str:
    """An error's text without its line breaks, bounded."""
    return " ".join(str(error).split())[:200]


def _without_ledger(folder: Path) -> str:
    if (folder / files.JOURNAL).is_dir():
        return "this run hasn't ended: it is still on, or was killed and `scout recover` completes it"
    if (folder / files.RUN).exists():
        return f"no {files.LEDGER}: this run ended before any request did, or the file was removed"
    return f"not a run folder: no {files.LEDGER}"


def _has(table: pd.DataFrame, columns: set[str]) -> pd.DataFrame:
    """The table. Raises ValueError if it lacks one of these columns."""
    if missing := columns - set(table.columns):
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    return table
