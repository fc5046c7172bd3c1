"""The ledger of a run: one row per scheduled request and allocator, and the promise that none is missing."""

import shutil
from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import pandas as pd

from agents.arrivals import Arrival
from agents.record import FIELDS, NEVER_RELEASED, Journal, Record, Status
from cluster.run_folder.jsonl import Tail
from cluster.run_folder.result import Turn
from cluster.scenario.schema import Scenario
from reports import files
from reports.metrics import is_released

COLUMNS = ["allocator", *FIELDS, "interventions"]


class Unbalanced(AssertionError):
    """Scheduled is not met + late + rejected + failed: a defect of the emulator, never of a scenario."""


def journalled_allocators(run_dir: Path, allocators: list[str]) -> list[str]:
    """Those of `allocators` whose turn has left journals."""
    return [name for name in allocators if any(files.turn_journal(run_dir, name).glob(files.TURN_REQUESTS))]


def read_journals(run_dir: Path, turn: Turn) -> None:
    """Give a turn the ids of the requests that its journals say were issued, and the records of those that ended.

    A last line that a kill cut off is left out.
    """
    for path in sorted(files.turn_journal(run_dir, turn.allocator).glob(files.TURN_REQUESTS)):
        _read_journal(path, turn)


def _read_journal(path: Path, turn: Turn) -> None:
    for entry in Tail(path).objects():
        if "issued" in entry:
            turn.issued.add(entry["issued"])
        else:
            turn.records.append(Record.from_entry(entry))


def give_up(
    journal: Path, arrivals: Sequence[Arrival], scenario: Scenario, reason: str
) -> tuple[list[int], list[Arrival]]:
    """Account for the requests of a host that has died: those that it had released and not ended get a record.

    Args:
        journal: the host's own; the records go into another one beside it.
        arrivals: what it was to release.

    Returns the ids of those requests, and the arrivals that it had not released.
    """
    turn = Turn("")
    _read_journal(journal, turn)
    lost = turn.issued - {record.request_id for record in turn.records}
    _write_lost(journal, scenario, [arrival for arrival in arrivals if arrival.request_id in lost], reason)
    return sorted(lost), [arrival for arrival in arrivals if arrival.request_id not in turn.issued]


def skip(journal: Path, arrivals: Sequence[Arrival], scenario: Scenario, reason: str) -> None:
    """Account for requests that are not released any more; `journal` is that of the host that was to release them."""
    _write_lost(journal, scenario, arrivals, NEVER_RELEASED + reason)


def _write_lost(journal: Path, scenario: Scenario, arrivals: Sequence[Arrival], reason: str) -> None:
    beside = Journal(journal.with_name(f"{journal.stem}-died.jsonl"))
    for arrival in arrivals:
        beside.write(_lost(scenario, arrival, reason))
    beside.close()


def assemble(turns: Sequence[Turn], scenario: Scenario, lost_reason: str) -> pd.DataFrame:
    """The ledger of these turns, balanced. `interventions` is how many there were before a request's intended start.

    Args:
        lost_reason: why a scheduled request of a turn that was not cut short left no record; it is `failed`, for this
            reason if it was issued, else `NEVER_RELEASED` for it.

    Raises:
        Unbalanced: a request has two records, or one without having been scheduled and issued.
    """
    schedule = scenario.schedule()
    rows: list[tuple] = []
    for turn in turns:
        recorded = {record.request_id for record in turn.records}
        why = turn.cut_short or lost_reason
        records = turn.records + [
            _lost(scenario, arrival, why if arrival.request_id in turn.issued else NEVER_RELEASED + why)
            for arrival in schedule
            if arrival.request_id not in recorded
        ]
        records.sort(key=attrgetter("request_id"))
        for record in records:
            record.mean_grant_mbps = turn.mean_grants_mbps.get(record.request_id, record.mean_grant_mbps)
        done_s = [event.at_s for event in turn.timeline.events if event.kind == "intervention"]
        rows += [
            (turn.allocator, *record.entry().values(), bisect_right(done_s, record.intended_s) if done_s else 0)
            for record in records
        ]
    ledger = pd.DataFrame(rows, columns=COLUMNS)
    ledger["status"] = ledger.status.map(str)
    check_balance(ledger, len(schedule) * len(turns))
    issued, released = sum(len(turn.issued) for turn in turns), int(is_released(ledger).sum())
    if issued != released:
        raise Unbalanced(f"{issued} issued, but {released} in rows of released requests")
    return ledger


def write(run_dir: Path, ledger: pd.DataFrame) -> None:
    """Write the Parquet file."""
    ledger.to_parquet(run_dir / files.LEDGER, index=False)


def remove_journals(run_dir: Path) -> None:
    """Remove the journals of a run whose ledger and summary are written."""
    shutil.rmtree(run_dir / files.JOURNAL, ignore_errors=True)  # there is none if no turn began


def check_balance(ledger: pd.DataFrame, scheduled: int) -> None:
    """Raises Unbalanced unless scheduled = met + late + rejected + failed."""
    twice = ledger.duplicated(["allocator", "request_id"])
    if twice.any():
        raise Unbalanced(f"request {ledger[twice].request_id.iloc[0]} has two records")
    counted = {status: int((ledger.status == status).sum()) for status in Status}
    if sum(counted.values()) != scheduled or len(ledger) != scheduled:
        shown = " + ".join(f"{number} {status}" for status, number in counted.items())
        raise Unbalanced(f"{scheduled} scheduled, but {shown} in {len(ledger)} rows")


def _lost(scenario: Scenario, arrival: Arrival, reason: str) -> Record:
    record = Record.of(arrival, scenario.agent_profiles[arrival.agent_id].name, scenario.agent_slos[arrival.agent_id])
    record.reason = reason
    return record
