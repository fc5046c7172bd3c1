"""The ledger of a run: one row per request and allocator, and the promise that none is missing."""

import json
from dataclasses import fields
from pathlib import Path

import pandas as pd

from agents.arrivals import Arrival
from agents.record import Record, Status
from cluster.scenario import Scenario

COLUMNS = ["allocator", *(field.name for field in fields(Record))]
LEDGER_FILE = "ledger.parquet"
JOURNAL_FOLDER = "journal"


class Unbalanced(AssertionError):
    """Issued is not met + late + rejected + failed: a defect of the emulator, never of a scenario."""


def journal_folder(run_dir: Path, allocator: str) -> Path:
    """Where the actors of one allocator's turn write their records."""
    return run_dir / JOURNAL_FOLDER / allocator


def read_journals(run_dir: Path, allocator: str) -> list[dict]:
    """All whole records of one allocator's turn; a last line cut off by a kill is left out."""
    records = []
    for path in sorted(journal_folder(run_dir, allocator).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append({"allocator": allocator, **json.loads(line)})
            except json.JSONDecodeError:
                continue
    return records


def assemble(run_dir: Path, scenario: Scenario, ended_s: dict[str, float], lost_reason: str) -> pd.DataFrame:
    """The ledger from the journals, balanced.

    Args:
        ended_s: for each allocator that had its turn, when it ended, in seconds since its start. Every request
            intended before that was issued.
        lost_reason: why a request that was issued left no record; it is `failed`.

    Raises:
        Unbalanced: a request has two records, or one that nobody issued.
    """
    schedule = scenario.schedule()
    rows: list[dict] = []
    for allocator, end_s in ended_s.items():
        found = read_journals(run_dir, allocator)
        recorded = {row["request_id"] for row in found}
        if len(recorded) != len(found) or not recorded <= {arrival.request_id for arrival in schedule}:
            raise Unbalanced(f"{allocator}: {len(found)} records of {len(recorded)} requests, {len(schedule)} planned")
        lost = [a for a in schedule if a.intended_s < end_s and a.request_id not in recorded]
        rows += found + [_lost_row(allocator, scenario, arrival, lost_reason) for arrival in lost]
    ledger = pd.DataFrame(rows, columns=COLUMNS)
    check_balance(ledger, sum(arrival.intended_s < end_s for end_s in ended_s.values() for arrival in schedule))
    return ledger.sort_values(["allocator", "request_id"], kind="stable", ignore_index=True)


def write(run_dir: Path, ledger: pd.DataFrame) -> None:
    """Write the Parquet file; the journals have done their work and go."""
    ledger.to_parquet(run_dir / LEDGER_FILE, index=False)
    for path in (run_dir / JOURNAL_FOLDER).glob("*/*.jsonl"):
        path.unlink()
    for folder in (run_dir / JOURNAL_FOLDER).glob("*"):
        folder.rmdir()
    (run_dir / JOURNAL_FOLDER).rmdir()


def check_balance(ledger: pd.DataFrame, issued: int) -> None:
    """Raises Unbalanced unless issued = met + late + rejected + failed."""
    counted = {status: int((ledger.status == status).sum()) for status in Status}
    if sum(counted.values()) != issued or len(ledger) != issued:
        shown = " + ".join(f"{number} {status}" for status, number in counted.items())
        raise Unbalanced(f"{issued} issued, but {shown} in {len(ledger)} rows")


def _lost_row(allocator: str, scenario: Scenario, arrival: Arrival, reason: str) -> dict:
    record = Record(
        arrival.request_id,
        arrival.agent_id,
        scenario.agent_profiles[arrival.agent_id].name,
        arrival.round,
        arrival.intended_s,
        scenario.deadline_ms,
        reason=reason,
    )
    return {"allocator": allocator, **{field.name: getattr(record, field.name) for field in fields(record)}}
