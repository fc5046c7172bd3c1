"""The bench on the smallest plan, and its tables."""

import json

from rich.console import Console

from netem.bench import bench_links, bench_tables
from netem.bench.cycles import bench_cycles, cycles_table


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
    assert len(steps) == len([row for row in result["rows"] if row["measure"] != "reaction"]) + 1
    transfers = [row for row in result["rows"] if row["measure"] == "transfer"]
    assert [(row["agents"], row["payload_bytes"]) for row in transfers] == [(1, 336), (1, 65536), (4, 336), (4, 65536)]
    assert all(abs(row["median_error"]) < 0.3 for row in transfers if row["payload_bytes"] == 65536)
    (overcommitted,) = [row for row in result["rows"] if row["measure"] == "overcommitted"]
    assert abs(overcommitted["error"]) < 0.1
    console = Console(width=200, record=True)
    for table in bench_tables(result):
        console.print(table)
    assert "65536" in console.export_text()


def test_what_would_take_too_long_is_skipped_and_says_so() -> None:
    result = bench_links("paced", sizes_bytes=(1_000_000,), rates_mbps=(0.5,), agents=(1,), quick=True, repeats=1)
    (row,) = [row for row in result["rows"] if row["measure"] == "transfer"]
    assert "more than 3 s" in row["skipped"]


def test_cycles_leave_nothing() -> None:
    found = bench_cycles(8, agents=2)
    assert found["cycles"] == 8 and found["killed"] >= 1
    memory = "peak_resident_kib"
    assert {k: v for k, v in found["after"].items() if k not in (memory, "namespaces")} == {
        k: v for k, v in found["before"].items() if k not in (memory, "namespaces")
    }
    assert found["after"][memory] < found["before"][memory] + 16_384
    assert str(found["killed"]) in str(cycles_table(found).title)
