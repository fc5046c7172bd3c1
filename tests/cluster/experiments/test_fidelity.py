"""Live against simulated: the comparison on ledgers made by hand, and the command from end to end."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from agents.record import STAGES, Record, Status
from cluster.run_folder.ledger import assemble
from cluster.scenario.schema import Scenario
from cluster.simulated.engine import SimulatedEngine
from kvcache.modes import parse_mode
from reports.fidelity import compare, print_fidelity
from reports.schema import BothEngines, Deviation, Fidelity, RelativeError
from tests.support.commands import scout

Write = Callable[..., Path]
COMPARISON = {
    *("requests", "answered_in_both", "latency_error", "bias", "compliance", "compliance_difference"),
    *("delivered_difference", "parted", "first_parted", "stages_ms", "ttft_error"),
}


def row(number: int, allocator: str = "equal", **values: Any) -> dict[str, Any]:
    """A request that was answered in time, where nothing else is said."""
    record = Record(number, 0, "tiny", -1, number / 10, 1000.0, Status.MET, mode=parse_mode("int8"), lateness_ms=0.0)
    record.latency_ms, record.quality_delivered = 100.0, 90.0
    return {"allocator": allocator, **record.entry(), "status": "met", **values}


Compared = Callable[..., dict[str, Deviation]]


@pytest.fixture
def compared(tmp_path: Path) -> Compared:
    def compare_rows(live: list[dict[str, Any]], simulated: list[dict[str, Any]]) -> dict[str, Deviation]:
        for name, rows in (("live", live), ("simulated", simulated)):
            pd.DataFrame(rows).to_parquet(tmp_path / f"{name}.parquet", index=False)
        return compare(tmp_path / "live.parquet", tmp_path / "simulated.parquet")

    return compare_rows


def test_equal_ledgers_are_equal(compared: Compared) -> None:
    rows = [row(number) for number in range(4)]
    found = compared(rows, rows)["equal"]
    assert (found.requests, found.answered_in_both) == (4, 4)
    assert found.latency_error == RelativeError(median=0.0, p95=0.0)
    assert (found.bias, found.compliance_difference, found.delivered_difference) == (0, 0, 0)
    assert (found.compliance, found.parted) == (BothEngines(live=1.0, simulated=1.0), 0.0)
    assert found.first_parted == []
    assert found.stages_ms == dict.fromkeys(STAGES, 0.0)


def test_errors_are_relative_to_live_and_bias_has_a_sign(compared: Compared) -> None:
    live = [row(number, latency_ms=ms) for number, ms in enumerate([100.0, 200.0, 400.0])]
    simulated = [row(number, latency_ms=ms) for number, ms in enumerate([90.0, 196.0, 404.0])]
    found = compared(live, simulated)["equal"]
    assert found.latency_error.median == pytest.approx(0.02)
    assert found.latency_error.p95 == pytest.approx(0.1 - 0.1 * (0.1 - 0.02))
    assert found.bias == pytest.approx(-0.02), "of -10, -2 and +1 %"


def test_compliance_is_in_points_of_all_requests_and_those_that_part_are_named(compared: Compared) -> None:
    live = [row(number) for number in range(10)]
    simulated = [row(number) for number in range(10)]
    simulated[3] |= {"status": "late", "quality_delivered": 0.0}
    simulated[5] |= {"status": "late", "quality_delivered": 0.0, "mode": "int4"}
    simulated[7] |= {"mode": "int4", "quality_delivered": 80.0}
    live[9] |= {"status": "late", "quality_delivered": 0.0}
    found = compared(live, simulated)["equal"]
    assert (found.compliance.live, found.compliance.simulated) == pytest.approx((0.9, 0.8))
    assert found.compliance_difference == pytest.approx(-10)
    assert found.delivered_difference == pytest.approx((-90 - 90 - 10 + 90) / 10)
    assert found.parted == pytest.approx(0.4) and found.first_parted == [3, 5, 7, 9]


def test_what_was_answered_on_one_side_only_counts_but_not_in_times(compared: Compared) -> None:
    nan = float("nan")
    unanswered = {"latency_ms": nan, "status": "failed", "quality_delivered": 0.0}
    live = [row(0), row(1, **unanswered), row(2, **unanswered), row(3, transfer_ms=50.0, **unanswered)]
    simulated = [row(0, latency_ms=110.0), row(1), row(2, **unanswered), row(3)]
    found = compared(live, simulated)["equal"]
    assert (found.requests, found.answered_in_both) == (4, 1)
    assert found.latency_error.median == found.bias == pytest.approx(0.1)
    assert found.compliance_difference == pytest.approx(50)
    assert found.first_parted == [1, 3]
    assert found.stages_ms["transfer"] == 0.0


def test_nothing_answered_has_no_times(compared: Compared) -> None:
    rows = [row(number, latency_ms=float("nan"), status="rejected") for number in range(2)]
    found = compared(rows, rows)["equal"]
    assert found.latency_error == RelativeError(median=None, p95=None)
    assert found.bias is None and found.stages_ms == {}


def test_stages_are_ordered_by_what_they_take_more_or_less(compared: Compared) -> None:
    live = [row(number, transfer_ms=20.0 + number, decode_ms=30.0, queue_ms=1.0) for number in range(3)]
    simulated = [row(number, transfer_ms=20.0, decode_ms=35.0, queue_ms=1.0) for number in range(3)]
    stages = compared(live, simulated)["equal"].stages_ms
    assert list(stages.items())[:2] == [("decode", -5.0), ("transfer", 1.0)]
    assert set(stages) == set(STAGES)


def test_allocators_and_requests_that_both_have_are_compared(compared: Compared) -> None:
    live = [row(0, "equal"), row(1, "equal"), row(0, "deadline"), row(0, "only_live")]
    simulated = [row(0, "equal"), row(0, "deadline", latency_ms=200.0), row(1, "deadline"), row(0, "only_simulated")]
    found = compared(live, simulated)
    assert list(found) == ["equal", "deadline"]
    assert found["equal"].requests == found["deadline"].requests == 1
    assert found["deadline"].bias == 1.0 and found["equal"].bias == 0.0


def test_stages_are_those_of_the_ledger_and_add_up_to_the_latency(scenario: Write) -> None:
    """So that what the comparison shows of stages explains what it shows of latencies."""
    loaded = Scenario.load(scenario())
    ledger = assemble(SimulatedEngine(loaded).run().turns, loaded, "").dropna(subset=["latency_ms"])
    assert len(ledger) == 12
    stages_ms = ledger[[f"{stage}_ms" for stage in STAGES]].sum(axis=1)
    assert stages_ms.to_numpy() == pytest.approx(ledger.latency_ms.to_numpy(), rel=1e-3)


def test_the_table_shows_it_also_where_there_is_nothing_to_show(compared: Compared) -> None:
    live = [row(number) for number in range(4)] + [row(0, "deadline", latency_ms=float("nan"), status="failed")]
    simulated = [row(number, latency_ms=101.0, transfer_ms=3.0) for number in range(3)]
    simulated += [row(3, latency_ms=101.0, transfer_ms=3.0, status="late")]
    simulated += [row(0, "deadline", latency_ms=float("nan"), status="failed")]
    shown = StringIO()
    both = compared(live, simulated)
    document = Fidelity.model_construct(title="small", footnote="by hand", allocators=both, ask_ms={"equal": 1.5})
    document.live_again = {"equal": compared(live, live)["equal"]}
    print_fidelity(Console(file=shown, width=110), document)
    lines = shown.getvalue().splitlines()
    assert "asking the allocator takes as long as live: equal 1.5 ms" in shown.getvalue()
    (again,) = (line.split() for line in lines if "live again" in line)
    assert again[2:5] == ["4", "0.00%", "0.00%"]
    (equal,) = (line.split() for line in lines if line.split()[:1] == ["equal"])
    assert equal == [*("equal", "4", "1.00%", "1.00%", "+1.00%", "100.0%", "75.0%", "-25.00", "+0.00", "25.0%")]
    assert any("–" in line for line in lines if line.startswith(" deadline"))
    assert any(line.startswith("equal: live takes longer") and "transfer -3.0 ms" in line for line in lines)
    assert any("first requests that part: 3" in line for line in lines)
    assert any(line.startswith("by hand; asking") for line in lines)


# The command.


def test_live_and_simulated_side_by_side(ray_head: str, scenario: Write, tmp_path: Path) -> None:
    arrivals = {"kind": "synchronized", "rounds": 2, "period_s": 1.3}
    # Whether this machine is busy is not what is tested here.
    path = scenario(arrivals=arrivals, lateness_limit_ms=2000)
    out = tmp_path / "out"
    done = scout("fidelity", str(path), "--out", str(out), "--address", ray_head, "--twice", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)  # one document, and nothing else on standard output
    assert document == json.loads((out / "fidelity.json").read_text())
    facts = {"title", "scenario", "partial", "valid", "warnings", "ask_ms", "footnote"}
    assert set(document) == facts | {"allocators", "live_again", "live", "simulated"}
    assert list(document["ask_ms"]) == ["equal", "model_aware"] and min(document["ask_ms"].values()) > 0
    assert set(document["live_again"]) == {"equal", "model_aware"}
    assert (document["scenario"], document["partial"], document["valid"]) == ("tiny", False, True)
    for side in ("live", "simulated"):
        assert document[side]["engine"] == side
        assert document[side] == json.loads((out / side / "summary.json").read_text())
        assert {"scenario.yaml", "run.json", "ledger.parquet"} <= {path.name for path in (out / side).iterdir()}
    assert list(document["allocators"]) == ["equal", "model_aware"]
    for found in document["allocators"].values():
        assert set(found) == COMPARISON and found["ttft_error"] is None, "answers come whole"
        assert found["requests"] == 4
        assert abs(found["compliance_difference"]) <= 50
        assert found["answered_in_both"] == 4 and found["latency_error"]["median"] < 0.5
        assert set(found["stages_ms"]) == set(STAGES)


def refused(*arguments: str) -> str:
    done = scout("fidelity", *arguments)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    return done.stderr


def test_mistakes(scenario: Write, tmp_path: Path) -> None:
    path, out = str(scenario()), tmp_path / "out"
    assert "gone.yaml: No such file" in refused("gone.yaml", "--out", str(out))
    assert "no allocator 'best'" in refused(path, "--allocators", "best", "--out", str(out))
    assert not out.exists()
    (out / "live").mkdir(parents=True)
    (out / "live" / "ledger.parquet").touch()
    assert "live is not empty; a run needs a folder of its own" in refused(path, "--out", str(out), "--json")
    assert "is `ray start --head` running" in refused(
        path, "--address", "127.0.0.1:1", "--out", str(tmp_path / "other")
    )
    assert not (tmp_path / "other" / "live").exists(), "nothing is left in the way of the next try"
