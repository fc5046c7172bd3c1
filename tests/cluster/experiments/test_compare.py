"""`scout compare`: the same arrivals and channels for all, floors and ceiling along, verdicts that can be had again."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest

from allocator.bench.hindsight import TooLarge
from cluster.experiments import bound
from cluster.experiments.compare import Sweep, plan, run_all
from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import Document, DocumentError
from reports.machine import describe_machine
from reports.schema import ComparisonRuns, Summary
from tests.support.commands import ENVIRONMENT, scout, started
from tests.support.scenarios import write_scenario

Write = Callable[..., Path]


BUSY = {
    "arrivals": {"kind": "poisson", "rate_per_s": 1.0, "duration_s": 10},
    "uplink": {"channel": {"kind": "constant", "mbps": 20}},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison's folder, which tests only read."""
    folder = tmp_path_factory.mktemp("comparison")
    arguments = ("--allocators", "deadline,model_aware", "--seeds", "3", "--sweep", "uplink.channel.mbps=5,20")
    done = scout("compare", write_scenario(folder, **BUSY), *arguments, "--out", folder / "compared", "--json")
    assert done.returncode == 0, done.stderr
    (folder / "compared" / "shown.json").write_text(done.stdout)
    return folder / "compared"


@pytest.fixture
def compared(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "compared"))


def test_every_run_has_all_allocators_on_the_same_arrivals(made: Path) -> None:
    folders = sorted(path.parent for path in made.rglob("ledger.parquet"))
    assert len(folders) == 2 * 3
    orders = []
    for folder in folders:
        ledger = pd.read_parquet(folder / "ledger.parquet")
        arrivals = [tuple(zip(rows.agent_id, rows.intended_s, strict=True)) for _, rows in ledger.groupby("allocator")]
        assert len(set(arrivals)) == 1
        orders.append(tuple(ledger.allocator.unique()))
        assert {"deadline", "model_aware", "equal", "rate_oracle"} <= set(orders[-1])
    assert len(set(orders)) == 3, "none always goes first"
    seeds = {pd.read_parquet(folder / "ledger.parquet").intended_s.iloc[0] for folder in folders}
    assert len(seeds) == 3, "a seed has arrivals of its own, the same at every point of the sweep"


def test_figures_are_the_ledgers_and_come_again_from_the_folders(made: Path) -> None:
    shown = json.loads((made / "shown.json").read_text())
    again = scout("report", str(made), "--json")
    assert again.returncode == 0 and json.loads(again.stdout) == shown
    assert Path(shown["report"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [point["point"] for point in shown["points"]] == [{"uplink.channel.mbps": 5}, {"uplink.channel.mbps": 20}]
    point = shown["points"][0]
    ledgers = [pd.read_parquet(path) for path in (made / "uplink.channel.mbps=5").rglob("ledger.parquet")]
    rows = pd.concat(ledgers)
    for name, figures in point["figures"].items():
        own = rows[rows.allocator == name]
        assert figures["issued"] == len(own) == sum(figures[s] for s in ("met", "late", "rejected", "failed"))
        means = [100 * (each[each.allocator == name].status == "met").mean() for each in ledgers]
        assert figures["compliance"]["mean"] == pytest.approx(sum(means) / 3)
    for point in shown["points"]:
        for figures in point["figures"].values():
            assert figures["compliance"]["mean"] <= point["bound"]["compliance"]
            assert figures["delivered_quality"]["mean"] <= point["bound"]["delivered_quality"]
    point = shown["points"][0]
    assert {(v["first"], v["second"]) for v in point["verdicts"]} == {("deadline", "model_aware")}
    assert all(v["verdict"].startswith("too few runs") for v in point["verdicts"])


def test_damaged_missing_and_partial_runs_are_named_and_the_rest_is_shown(compared: Path) -> None:
    (compared / "uplink.channel.mbps=5" / "seed-42" / "summary.json").write_text("{")
    shutil.rmtree(compared / "uplink.channel.mbps=5" / "seed-43")
    (compared / "uplink.channel.mbps=20" / "seed-43" / "ledger.parquet").unlink()
    summary = compared / "uplink.channel.mbps=20" / "seed-42" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"partial": True, "warnings": ["PARTIAL: killed"]}))
    done = scout("report", str(compared), "--json")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert [point["seeds"] for point in found["points"]] == [1, 1]
    told = " ".join(found["warnings"])
    assert (
        "damaged, not JSON" in told
        and "seed-43/ledger.parquet" in told
        and "No such file" in told
        and "uplink.channel.mbps=20/seed-42 is partial" in told
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": 3}', '{"runs": [], "compared": [], "planned": 0}'])
def test_no_comparison_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "compare.json").write_text(text)
    done = scout("report", str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 2


def test_a_run_outside_the_folder_is_not_read(compared: Path) -> None:
    document = json.loads((compared / "compare.json").read_text())
    document["runs"][0]["folder"] = "../elsewhere"
    (compared / "compare.json").write_text(json.dumps(document))
    done = scout("report", str(compared))
    assert done.returncode == 1 and "lies outside the comparison" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("seed=1,2", "that is what --seeds is for"),
        ("uplink.channel.mbps", "--sweep takes key=value"),
        ("uplink.chanel.mbps=5", "there is no uplink.chanel to change"),
        ("uplink.channel.mbps=-5", "uplink.channel.mbps: -5: "),
        ("agents.groups.7.count=2", "there is no agents.groups[7] to change"),
        ("deadline=5", "deadline: unknown key"),
        ("allocators=clairvoyant", "that is what --allocators is for"),
    ],
)
def test_wrong_sweeps_are_one_line(scenario: Write, tmp_path: Path, sweep: str, message: str) -> None:
    done = scout("compare", str(scenario(**BUSY)), "--sweep", sweep, "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and message in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_the_old_name_of_the_rate_oracle_is_refused_with_the_new_one(scenario: Write) -> None:
    with pytest.raises(DocumentError, match="called rate_oracle now, and `scout compare` adds it by itself"):
        plan(Document.read(scenario(**BUSY)), ["clairvoyant"], 1, [])


def test_floors_and_ceiling_only_where_the_scenario_allows_them(scenario: Write) -> None:
    document = Document.read(scenario(**BUSY))
    with_local = plan(document.changed(("modes",), ["full", "local"]), ["deadline"], 1, [])
    without = plan(document.changed(("modes",), ["full"]), ["deadline"], 1, [])
    names = [planned.runs[0].scenario.allocator_names for planned in (with_local, without)]
    assert names == [["deadline", "local_only", "equal", "rate_oracle"], ["deadline", "equal", "rate_oracle"]]
    assert with_local.compared == ["deadline"]
    swept = plan(document, ["deadline"], 1, [Sweep(("modes",), (["full"], ["full", "local"]))])
    assert [len(each.scenario.allocators) for each in swept.runs] == [3, 4], "each point has those that it allows"
    with pytest.raises(DocumentError, match="10000"):
        plan(document, None, 1000, [Sweep(("deadline_ms",), tuple(range(5000, 5011)))])


def test_an_interrupt_at_any_moment_ends_with_what_there_is(scenario: Write, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    running = started("compare", scenario(**BUSY), "--seeds", "500", "--out", folder)
    assert running.stderr is not None
    while "3 of 500" not in running.stderr.readline():  # right now, that run has ended and the next is being prepared
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in errors, errors
    assert " of 500 runs were made" in " ".join(errors.split())
    assert 3 <= len(list(folder.rglob("ledger.parquet"))) < 20


def test_live_runs_are_compared_just_so(ray_head: str, scenario: Write, tmp_path: Path) -> None:
    command = ["compare", scenario(), "--allocators", "deadline,equal", "--seeds", "1", "--engine", "live"]
    on_the_head = ENVIRONMENT | {"RAY_ADDRESS": ray_head}
    done = scout(*command, "--out", tmp_path / "compared", "--json", environment=on_the_head)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (point,) = found["points"]
    assert found["engine"] == "live" and point["seeds"] == 1
    assert {"deadline", "equal", "rate_oracle"} <= set(point["figures"])
    assert all("too few runs" in verdict["verdict"] for verdict in point["verdicts"])


@pytest.mark.parametrize("failure", [RuntimeError("no bound: no optimum"), TooLarge("no bound: it takes too long")])
def test_without_a_bound_the_runs_are_there_all_the_same(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[int] = []

    def fail(*arguments: Any) -> None:
        listed.append(len(ComparisonRuns.read(tmp_path / "compare.json").runs))
        raise failure

    def run(scenario: Scenario, folder: Path) -> Summary:
        return cast(Summary, SimpleNamespace(partial=False))

    monkeypatch.setattr(bound, "hindsight", fail)
    planned = plan(Document.read(write_scenario(tmp_path, **BUSY)), None, 2, [])
    document = ComparisonRuns(
        scenario="tiny", engine="simulated", command="", machine=describe_machine(), compared=[], planned=2, runs=[]
    )
    lines: list[str] = []
    run_all(planned, tmp_path, run, document, lines.append, lambda: False)
    assert listed == [1, 2], "a run is listed before its bound is begun"
    assert [made.bound for made in ComparisonRuns.read(tmp_path / "compare.json").runs] == [None, None]
    assert [line for line in lines if str(failure) in line] == [f"{run.folder}: {failure}" for run in planned.runs]
