"""The ledger of a run: one row per request and allocator, and the promise that none is missing."""

import shutil
from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import pandas as pd

from agents.arrivals import Arrival
from agents.record import FIELDS, Journal, Record, Status
from cluster.run_folder.jsonl import Tail
from cluster.run_folder.result import Turn
from cluster.scenario.schema import Scenario
from reports import files

COLUMNS = ["allocator", *FIELDS, "interventions"]


class Unbalanced(AssertionError):
    """Issued is not met + late + rejected + failed: a defect of the emulator, never of a scenario."""


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


def give_up(journal: Path, arrivals: Sequence[Arrival], scenario: Scenario, reason: str) -> list[int]:
    """Account for the requests of a host that has died: those without a record get one, in a journal beside its own.

    Returns the ids of those that it had released.
    """
    turn = Turn("")
    _read_journal(journal, turn)
    ended = {record.request_id for record in turn.records}
    beside = Journal(journal.with_name(f"{journal.stem}-died.jsonl"))
    for arrival in arrivals:
        if arrival.request_id not in ended:
            beside.issue(arrival)
            beside.write(_lost(scenario, arrival, reason))
    beside.close()
    return sorted(turn.issued - ended)


def assemble(turns: Sequence[Turn], scenario: Scenario, lost_reason: str) -> pd.DataFrame:
    """The ledger of these turns, balanced. `interventions` is how many there were before a request's intended start.

    Args:
        lost_reason: why a request that was issued left no record; it is `failed`.

    Raises:
        Unbalanced: a request has two records, or one that nobody issued.
    """
    arrivals = {arrival.request_id: arrival for arrival in scenario.schedule()}
    rows: list[tuple] = []
    for turn in turns:
        lost = turn.issued - {record.request_id for record in turn.records}
        records = turn.records + [_lost(scenario, arrivals[request_id], lost_reason) for request_id in lost]
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
    check_balance(ledger, sum(len(turn.issued) for turn in turns))
    return ledger


def write(run_dir: Path, ledger: pd.DataFrame) -> None:
    """Write the Parquet file."""
    ledger.to_parquet(run_dir / files.LEDGER, index=False)


def remove_journals(run_dir: Path) -> None:
    """Remove the journals of a run whose ledger and summary are written."""
    shutil.rmtree(run_dir / files.JOURNAL, ignore_errors=True)  # there is none if no turn began


def check_balance(ledger: pd.DataFrame, issued: int) -> None:
    """Raises Unbalanced unless issued = met + late + rejected + failed."""
    twice = ledger.duplicated(["allocator", "request_id"])
    if twice.any():
        raise Unbalanced(f"request {ledger[twice].request_id.iloc[0]} has two records")
    counted = {status: int((ledger.status == status).sum()) for status in Status}
    if sum(counted.values()) != issued or len(ledger) != issued:
        shown = " + ".join(f"{number} {status}" for status, number in counted.items())
        raise Unbalanced(f"{issued} issued, but {shown} in {len(ledger)} rows")


def _lost(scenario: Scenario, arrival: Arrival, reason: str) -> Record:
    return Record(
        arrival.request_id,
        arrival.agent_id,
        scenario.agent_profiles[arrival.agent_id].name,
        arrival.round,
        arrival.intended_s,
        scenario.deadline_ms,
        reason=reason,
    )
