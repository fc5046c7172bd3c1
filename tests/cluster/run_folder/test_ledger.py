"""The ledger balances whatever the journals hold, and says so when it can't."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.record import Journal, Record, Status
from cluster.run_folder import ledger
from cluster.run_folder.result import Turn
from cluster.scenario.schema import Scenario
from reports import files
from reports.summary import summarize

TINY = Scenario.load(Path(__file__).parents[1] / "data" / "tiny.yaml")
ARRIVALS = TINY.schedule()


def record(request_id: int, status: Status = Status.MET) -> Record:
    arrival = ARRIVALS[request_id]
    return Record(request_id, arrival.agent_id, "p", arrival.round, arrival.intended_s, 700, status=status)


def journal(run_dir: Path, allocator: str, host: int) -> Journal:
    folder = files.turn_journal(run_dir, allocator)
    folder.mkdir(parents=True, exist_ok=True)
    return Journal(folder / f"host-{host}.jsonl")


def turns(run_dir: Path, *allocators: str) -> list[Turn]:
    """Turns as they stand in the journals."""
    found = [Turn(allocator) for allocator in allocators]
    for turn in found:
        ledger.read_journals(run_dir, turn)
    return found


@settings(deadline=None)  # of files and data frames; how fast they are isn't tested here
@given(st.lists(st.sampled_from([*Status, None]), max_size=len(ARRIVALS)))
def test_scheduled_is_met_late_rejected_and_failed(
    tmp_path_factory: pytest.TempPathFactory, ends: list[Status | None]
) -> None:
    """Whatever became of the requests that were issued (None: their actor died), each scheduled one has one row."""
    run_dir = tmp_path_factory.mktemp("run")
    log = journal(run_dir, "equal", 0)
    for request_id, status in enumerate(ends):
        log.issue(ARRIVALS[request_id])
        if status is not None:
            log.write(record(request_id, status))
    log.close()
    rows = ledger.assemble(turns(run_dir, "equal"), TINY, "its actor died")
    assert rows.request_id.tolist() == list(range(len(ARRIVALS)))
    assert (
        rows[rows.reason == "never released: its actor died"].request_id.tolist()
        == list(range(len(ARRIVALS)))[len(ends) :]
    )
    lost = [request_id for request_id, status in enumerate(ends) if status is None]
    assert rows[rows.reason == "its actor died"].request_id.tolist() == lost
    s = summarize(rows)["equal"]
    assert s.scheduled == len(ARRIVALS) == s.met + s.late + s.rejected + s.failed and s.issued == len(ends)
    assert s.failed == ends.count(None) + ends.count(Status.FAILED) + s.scheduled - s.issued


def test_a_line_cut_off_by_a_kill_is_a_lost_record(tmp_path: Path) -> None:
    log = journal(tmp_path, "equal", 0)
    log.issue(ARRIVALS[0])
    log.write(record(0))
    log.issue(ARRIVALS[1])
    log.close()
    path = files.turn_journal(tmp_path, "equal") / "host-0.jsonl"
    path.write_text(path.read_text() + '{"request_id": 1, "stat')
    rows = ledger.assemble(turns(tmp_path, "equal"), TINY, "killed")
    assert rows.status.tolist()[:2] == ["met", "failed"]
    assert rows.reason.tolist() == ["", "killed", *["never released: killed"] * (len(ARRIVALS) - 2)]


def test_what_doesn_t_balance_is_a_defect(tmp_path: Path) -> None:
    log = journal(tmp_path, "equal", 0)
    log.write(record(0))
    with pytest.raises(ledger.Unbalanced, match="0 issued, but 1 in rows"):
        ledger.assemble(turns(tmp_path, "equal"), TINY, "")
    log.issue(ARRIVALS[0])
    log.write(record(0, Status.LATE))
    with pytest.raises(ledger.Unbalanced, match="request 0 has two records"):
        ledger.assemble(turns(tmp_path, "equal"), TINY, "")


def test_written_ledgers_keep_every_column_and_the_journals_go(tmp_path: Path) -> None:
    import pandas as pd

    for allocator in ("equal", "model_aware"):
        log = journal(tmp_path, allocator, 0)
        log.issue(ARRIVALS[0])
        log.write(record(0))
        log.close()
    rows = ledger.assemble(turns(tmp_path, "equal", "model_aware"), TINY, "")
    ledger.write(tmp_path, rows)
    ledger.remove_journals(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [files.LEDGER]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / files.LEDGER), rows)
    assert list(rows.columns) == ledger.COLUMNS
    assert json.loads(json.dumps(rows[rows.request_id == 0].status.tolist())) == ["met", "met"]


def test_a_dead_host_s_requests_have_rows_and_what_is_to_come_is_left_to_another(tmp_path: Path) -> None:
    log = journal(tmp_path, "equal", 0)
    log.issue(ARRIVALS[0])
    log.write(record(0))
    log.issue(ARRIVALS[1])
    log.close()
    path = files.turn_journal(tmp_path, "equal") / "host-0.jsonl"
    released, unreleased = ledger.give_up(path, ARRIVALS, TINY, "the host died")
    assert released == [1] and unreleased == ARRIVALS[2:]
    ledger.skip(path, unreleased[:2], TINY, "the host died")
    left = unreleased[2:]
    again = journal(tmp_path, "equal", 1)
    for arrival in left:
        again.issue(arrival)
        again.write(record(arrival.request_id))
    again.close()
    rows = ledger.assemble(turns(tmp_path, "equal"), TINY, "not needed")
    assert rows.reason.tolist() == ["", "the host died", *["never released: the host died"] * 2, *[""] * len(left)]
