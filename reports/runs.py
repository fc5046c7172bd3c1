"""A run folder as a report needs it: what is there is read, what is missing or damaged is said."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict

from reports.summary import STAGES, STATUSES, summarize

MAX_FILE_BYTES = 64 * 2**20  # of JSON and YAML
MAX_TABLE_BYTES = 2**31
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


class _File(BaseModel):
    """What a report needs of a file, of the types that it needs; whatever else is there stays."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    @classmethod
    def read(cls, path: Path) -> dict[str, Any]:
        """Raises OSError, ValueError."""
        return cls.model_validate_json(path.read_bytes()).model_dump()


class _Facts(_File):
    command: str = ""
    started: str = ""
    engine: str = ""
    link: str = ""
    privilege: str = ""
    fallback_reason: str | None = None
    python: str = ""
    kernel: str = ""
    machine: str = ""
    cpus: int = 0
    memory_gib: float = 0.0
    versions: dict[str, str] = {}


class _Told(_File):
    issued: int
    met: int
    late: int
    rejected: int
    failed: int
    solve_ms: dict[str, float] = {}
    solve_curve_ms: list[float] = []
    stolen: float = 0.0


class _Event(_File):
    allocator: str
    at_s: float
    kind: str
    text: str


class _VerifiedAgent(_File):
    agent: int
    asked_mbps: float | None
    achieved_mbps: float | None
    round_trip_ms: float


class _Verified(_File):
    agents: list[_VerifiedAgent]


class _Summary(_File):
    title: str = ""
    footnote: str = ""
    warnings: list[str] = []
    allocators: dict[str, _Told] = {}
    events: list[_Event] = []
    verified: _Verified | None = None


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        facts: of run.json; scenario: as resolved; summary: of summary.json, or made from the ledger if that is missing.
        ledger: a row for each request and allocator, in the order of turns.
        timeline: a row for each moment of a turn (empty if there is none).
        events: interventions and faults.
        warnings: what a reader must know before believing it.
    """

    folder: Path
    facts: dict[str, Any]
    scenario: dict[str, Any]
    summary: dict[str, Any]
    ledger: pd.DataFrame
    timeline: pd.DataFrame
    events: list[dict[str, Any]]
    warnings: list[str]

    @property
    def name(self) -> str:
        """The scenario's."""
        return str(self.scenario.get("name") or self.folder.name)


def read_run(folder: Path) -> Run:
    """Everything that can be read of a run.

    Raises:
        ReportError: not even its ledger can.
    """
    if not folder.is_dir():
        raise ReportError(f"{folder}: no such folder")
    path = folder / "ledger.parquet"
    try:
        if not path.exists():
            raise ReportError(f"{folder}: {_without_ledger(folder)}")
        _bounded(path, MAX_TABLE_BYTES)
        ledger = pd.read_parquet(path)
        _has(ledger, LEDGER_COLUMNS)
    except (OSError, ValueError) as error:
        raise error if isinstance(error, ReportError) else ReportError(f"{path}: damaged: {one_line(error)}") from None
    warnings: list[str] = []

    def read(name: str, parse: Any, otherwise: Any) -> Any:
        """What a file says; the reason why not goes to the warnings."""
        try:
            _bounded(folder / name, MAX_FILE_BYTES)
            found = parse(folder / name)
            if not isinstance(found, type(otherwise)):
                raise ValueError(f"not a {type(otherwise).__name__}")
            return found
        except FileNotFoundError:
            warnings.append(f"{name} is missing: what it tells is left out")
        except (OSError, ValueError, yaml.YAMLError) as error:
            warnings.append(f"{name} is damaged ({one_line(error)}): what it tells is left out")
        return otherwise

    facts = read("run.json", _Facts.read, {})
    scenario = read("scenario.yaml", lambda p: yaml.safe_load(p.read_text("utf-8")), {})
    summary = read("summary.json", _Summary.read, {})
    timeline = read("timeline.parquet", lambda p: _has(pd.read_parquet(p), TIMELINE_COLUMNS), pd.DataFrame())
    counted = summarize(ledger)
    told = summary.get("allocators", {})
    for name, one in counted.items():
        if name in told:
            differing = [key for key in ("issued", *STATUSES) if told[name][key] != one[key]]
            if differing:
                warnings.append(f"{name}: ledger and summary differ in {', '.join(differing)}; the ledger counts here")
            counted[name] |= {key: told[name][key] for key in ("solve_ms", "solve_curve_ms", "stolen")}
    summary = summary | {"allocators": counted}
    events = summary.get("events") or []
    return Run(folder, facts, scenario, summary, ledger, timeline, events, [*summary.get("warnings", []), *warnings])


def one_line(error: BaseException) -> str:
    """An error's text without its line breaks, bounded."""
    return " ".join(str(error).split())[:200]


def _without_ledger(folder: Path) -> str:
    if (folder / "journal").is_dir():
        return "this run hasn't ended: it is still on, or was killed and `scout recover` completes it"
    if (folder / "run.json").exists():
        return "no ledger.parquet: this run ended before any request did, or the file was removed"
    return "not a run folder: no ledger.parquet"


def _has(table: pd.DataFrame, columns: set[str]) -> pd.DataFrame:
    """The table. Raises ValueError if it lacks one of these columns."""
    if missing := columns - set(table.columns):
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    return table


def _bounded(path: Path, most: int) -> None:
    if path.stat().st_size > most:
        raise ReportError(f"{path}: larger than {most >> 20} MiB")
