"""The bench on the smallest plan, and its tables."""

import json
import tempfile
from pathlib import Path

import pytest
from rich.console import Console

from netem.bench import bench_links, bench_tables
from netem.bench.cycles import bench_cycles, cycles_table

pytestmark = pytest.mark.measuring


def test_rows_and_tables() -> None:
    steps: list[str] = []
    result = bench_links(
        sizes_bytes=(336, 65536, 5_000_000),
        rates_mbps=(50.0,),
        agents=(1, 4),
        repeats=1,
        quick=True,
        progress=steps.append,
    )
    json.dumps(result, allow_nan=False)
    several = ("reaction", "delay")  # rows of one step
    kinds = {row["measure"] for row in result["rows"]}
    assert len(steps) == sum(row["measure"] not in several for row in result["rows"]) + len(kinds & {*several})
    transfers = [row for row in result["rows"] if row["measure"] == "transfer"]
    assert [(row["agents"], row["payload_bytes"]) for row in transfers] == [(1, 336), (1, 65536), (4, 336), (4, 65536)]
    assert all(abs(row["median_error"]) < 0.3 for row in transfers if row["payload_bytes"] == 65536)
    (overcommitted,) = [row for row in result["rows"] if row["measure"] == "overcommitted"]
    assert abs(overcommitted["error"]) < 0.1
    (replay,) = [row for row in result["rows"] if row["measure"] == "replay"]
    assert abs(replay["largest_error_at_a_second"]) < 0.1 and replay["mean_error_of_20_ms"] < 0.5
    (regranting,) = [row for row in result["rows"] if row["measure"] == "regranting"]
    assert regranting["changes"] > 10 and abs(regranting["all_error"]) < 0.1
    for row in result["rows"]:
        if row["measure"] == "delay":  # measured in a kernel that has it by test_uml.py
            assert "netem" in row.get("skipped", "netem")
    console = Console(width=200, record=True)
    for table in bench_tables(result):
        console.print(table)
    assert "65536" in console.export_text()


def test_what_would_take_too_long_is_skipped_and_says_so() -> None:
    result = bench_links("paced", sizes_bytes=(1_000_000,), rates_mbps=(0.5,), agents=(1,), quick=True, repeats=1)
    (row,) = [row for row in result["rows"] if row["measure"] == "transfer"]
    assert "more than 3 s" in row["skipped"]


def test_cycles_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where no other link's folder is counted
    monkeypatch.setattr(tempfile, "tempdir", None)
    found = bench_cycles(8, agents=2)
    assert found["cycles"] == 8 and found["killed"] >= 1
    memory = "peak_resident_kib"
    assert {k: v for k, v in found["after"].items() if k not in (memory, "namespaces")} == {
        k: v for k, v in found["before"].items() if k not in (memory, "namespaces")
    }
    assert found["after"][memory] < found["before"][memory] + 16_384
    assert str(found["killed"]) in str(cycles_table(found).title)
