"""The ledger of a run: one row per request and allocator, and the promise that none is missing."""

import json
import shutil
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


def journalled_allocators(run_dir: Path, allocators: list[str]) -> list[str]:
    """Those of `allocators` whose turn has left journals."""
    return [name for name in allocators if any(journal_folder(run_dir, name).glob("*.jsonl"))]


def read_journals(run_dir: Path, allocator: str) -> tuple[set[int], list[dict]]:
    """Ids of the requests issued in one allocator's turn, and the records of those that ended.

    A last line that a kill cut off is left out.
    """
    issued: set[int] = set()
    records = []
    for path in sorted(journal_folder(run_dir, allocator).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "issued" in entry:
                issued.add(entry["issued"])
            else:
                records.append({"allocator": allocator, **entry})
    return issued, records


def assemble(run_dir: Path, scenario: Scenario, allocators: list[str], lost_reason: str) -> pd.DataFrame:
    """The ledger from the journals of these allocators' turns, balanced.

    Args:
        lost_reason: why a request that was issued left no record; it is `failed`.

    Raises:
        Unbalanced: a request has two records, or one that nobody issued.
    """
    arrivals = {arrival.request_id: arrival for arrival in scenario.schedule()}
    rows: list[dict] = []
    issued_in_all = 0
    for allocator in allocators:
        issued, records = read_journals(run_dir, allocator)
        lost = issued - {record["request_id"] for record in records}
        rows += records
        rows += [_lost_row(allocator, scenario, arrivals[request_id], lost_reason) for request_id in lost]
        issued_in_all += len(issued)
    ledger = pd.DataFrame(rows, columns=COLUMNS)
    check_balance(ledger, issued_in_all)
    order = {name: number for number, name in enumerate(allocators)}
    return ledger.sort_values(
        ["allocator", "request_id"],
        key=lambda column: column.map(order) if column.name == "allocator" else column,
        ignore_index=True,
    )


def write(run_dir: Path, ledger: pd.DataFrame) -> None:
    """Write the Parquet file."""
    ledger.to_parquet(run_dir / LEDGER_FILE, index=False)


def remove_journals(run_dir: Path) -> None:
    """Ledger and summary are written: the journals have done their work."""
    shutil.rmtree(run_dir / JOURNAL_FOLDER, ignore_errors=True)  # there is none if no turn began


def check_balance(ledger: pd.DataFrame, issued: int) -> None:
    """Raises Unbalanced unless issued = met + late + rejected + failed."""
    twice = ledger.duplicated(["allocator", "request_id"])
    if twice.any():
        raise Unbalanced(f"request {ledger[twice].request_id.iloc[0]} has two records")
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
