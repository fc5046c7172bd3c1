"""`import scout`: runs from Python, whatever a scenario is given as, wherever the call is made."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import scout
from cluster.interrupts import Interrupts
from tests.support.commands import REPOSITORY
from tests.support.commands import scout as command
from tests.support.scenarios import write_scenario

LONG = {"kind": "poisson", "rate_per_s": 5, "duration_s": 20_000}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_scenario(tmp_path)


def simulated(scenario: Any, folder: Path, **options: Any) -> scout.RunResults:
    return scout.run(scenario, engine="simulated", out=folder, **options)


def test_importing_it_takes_neither_ray_nor_torch_nor_matplotlib() -> None:
    code = "import scout, sys; print(*{'ray', 'torch', 'matplotlib', 'pandas', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_exported_name_is_there() -> None:
    assert set(dir(scout)) == set(scout.__all__)
    assert all(getattr(scout, name) is not None for name in scout.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'runn'; it has .*run"):
        scout.runn  # noqa: B018


def test_a_simulated_run_imports_neither_ray_nor_torch_nor_matplotlib(path: Path, tmp_path: Path) -> None:
    code = f"""
import scout, sys
results = scout.run({str(path)!r}, engine="simulated", out={str(tmp_path / "out")!r})
results.ledger, results.timeline, results.requests_by("allocator")
print(*{{'ray', 'torch', 'matplotlib'}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("", ""), "and a log has no progress in it"


def test_results_are_those_of_the_run_folder(path: Path, tmp_path: Path) -> None:
    results = simulated(path, tmp_path / "out")
    assert results.folder == tmp_path / "out"
    assert results.ledger.equals(pd.read_parquet(tmp_path / "out" / "ledger.parquet"))
    assert set(results.timeline.allocator) == set(results.summary.allocators)
    assert results.scenario["name"] == results.summary.scenario
    again = scout.load(tmp_path / "out")
    assert again.summary == results.summary and again.ledger.equals(results.ledger)
    assert "equal" in repr(again) and str(tmp_path / "out") in repr(again)


def test_requests_by_allocator_are_the_summary(path: Path, tmp_path: Path) -> None:
    results = simulated(path, tmp_path / "out")
    table = results.requests_by("allocator")
    for name, s in results.summary.allocators.items():
        row = table.loc[name]
        assert {key: row[key] for key in s.counts()} == s.counts()
        assert row["compliance"] == s.compliance and row["wire_bytes"] == s.wire_bytes
        assert row["delivered_quality"] == pytest.approx(s.delivered_quality)
        assert row["latency_p95_ms"] == pytest.approx(s.latency_ms.p95)
    by_both = results.requests_by("allocator", "mode")
    assert by_both.issued.sum() == len(results.ledger)
    with pytest.raises(scout.InputError, match="no column 'model'; there are allocator, "):
        results.requests_by("model")
    with pytest.raises(scout.InputError, match="at least one column"):
        results.requests_by()


def test_it_is_the_same_run_as_on_the_command_line(path: Path, tmp_path: Path) -> None:
    done = command("run", path, "--engine", "simulated", "--out", tmp_path / "there")
    assert done.returncode == 0, done.stderr
    here = simulated(path, tmp_path / "here").ledger.drop(columns="allocate_ms")
    pd.testing.assert_frame_equal(scout.load(tmp_path / "there").ledger.drop(columns="allocate_ms"), here)


def test_a_scenario_may_be_a_mapping_or_an_object(path: Path, tmp_path: Path) -> None:
    expected = simulated(path, tmp_path / "a").ledger
    mapping = yaml.safe_load(path.read_text())
    for group in mapping["agents"]["groups"]:
        group["profile"] = str(tmp_path / group["profile"])
    of_mapping = simulated(mapping, tmp_path / "b")
    assert of_mapping.ledger.status.tolist() == expected.status.tolist()
    of_object = simulated(scout.Scenario.load(path), tmp_path / "c")
    assert of_object.ledger.equals(expected)
    of_parts = simulated(mapping | {"cloud": scout.CloudSettings(workers=2), "seed": np.int64(7)}, tmp_path / "d")
    assert (of_parts.scenario["cloud"]["workers"], of_parts.scenario["seed"]) == (2, 7)


def test_a_scenario_that_ships_goes_by_its_name(tmp_path: Path) -> None:
    overrides = {"arrivals.rounds": 1, "uplink.channel.mbps": 100}
    results = simulated("congestion", tmp_path / "out", overrides=overrides, allocators=["equal"])
    assert results.scenario["uplink"]["channel"]["mbps"] == 100 and results.summary.scenario == "congestion"


def test_overrides_replace_values_and_complain_in_lines_of_the_file(path: Path, tmp_path: Path) -> None:
    results = simulated(path, tmp_path / "a", overrides={"deadline_ms": 4000, "agents.groups.0.count": 3})
    assert results.scenario["deadline_ms"] == 4000 and results.scenario["agents"]["groups"][0]["count"] == 3
    with pytest.raises(scout.InputError, match=r"tiny.yaml:\d+: deadline_ms: -1: input should be greater than 0"):
        simulated(path, tmp_path / "b", overrides={"deadline_ms": -1})
    with pytest.raises(scout.InputError, match=r"tiny.yaml: there is no uplnk to change"):
        simulated(path, tmp_path / "b", overrides={"uplnk.channel": 1})
    assert not (tmp_path / "b").exists(), "what is refused leaves no folder"


class Silent:
    """A policy as third parties write them, but one that isn't one."""


def test_allocators_may_be_names_entries_or_classes(path: Path, tmp_path: Path) -> None:
    given = ["equal", {"policy": "deadline", "label": "mine"}, scout.AllocatorSettings(policy="greedy")]
    results = simulated(path, tmp_path / "a", allocators=given)
    assert list(results.summary.allocators) == ["equal", "mine", "greedy"]
    with pytest.raises(scout.InputError, match="Silent is not a policy"):
        simulated(path, tmp_path / "b", allocators=[Silent])


@pytest.mark.parametrize(
    ("scenario", "options", "message"),
    [
        ("gone.yaml", {}, "gone.yaml: No such file"),
        ({"speed": 1}, {}, "scenario: speed: unknown key; allowed here: agents, "),
        (None, {"allocators": ["best"]}, "no allocator 'best'; there are equal, "),
        (None, {"engine": "real"}, "no engine 'real'; there are live, simulated"),
    ],
)
def test_mistakes_are_input_errors(path: Path, tmp_path: Path, scenario: Any, options: Any, message: str) -> None:
    with pytest.raises(scout.InputError, match=message) as caught:
        scout.run(scenario or path, **({"engine": "simulated", "out": tmp_path / "out"} | options))
    assert isinstance(caught.value, scout.ScoutError) and isinstance(caught.value, ValueError)


def test_runs_in_the_same_second_have_folders_of_their_own(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [scout.run(path, engine="simulated").folder for _ in range(3)]
    assert len(set(folders)) == 3 and all(folder.parent == tmp_path / "runs" for folder in folders)
    with pytest.raises(scout.InputError, match="is not empty"):
        simulated(path, folders[0])


async def test_it_runs_where_an_event_loop_is_running_as_in_a_notebook(path: Path, tmp_path: Path) -> None:
    asyncio.get_running_loop()
    assert simulated(path, tmp_path / "out").summary.issued > 0


def test_it_runs_in_threads_one_at_a_time(path: Path, tmp_path: Path) -> None:
    found: list[pd.DataFrame] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(simulated(path, tmp_path / f"{n}").ledger)) for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(ledger.equals(found[0]) for ledger in found)


def interrupting_once_it_runs(monkeypatch: pytest.MonkeyPatch, raise_it: Callable[[], object]) -> None:
    """Call `raise_it` in another thread, a moment after the run takes interrupts itself."""
    hand_to = Interrupts.hand_to
    begun = threading.Event()

    def told(self: Interrupts, then: Callable[[], object]) -> None:
        hand_to(self, then)
        begun.set()

    def wait_and_raise() -> None:
        begun.wait(60)
        time.sleep(0.3)
        raise_it()

    monkeypatch.setattr(Interrupts, "hand_to", told)
    threading.Thread(target=wait_and_raise, daemon=True).start()


def check_partial(interrupted: scout.Interrupted) -> None:
    results = interrupted.results
    assert results.summary.partial and "PARTIAL: interrupted" in results.summary.warnings
    assert scout.load(results.folder).summary.partial and str(results.folder) in str(interrupted)
    for s in results.summary.allocators.values():
        assert s.issued == s.met + s.late + s.rejected + s.failed


def test_ctrl_c_leaves_a_partial_result(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    interrupting_once_it_runs(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as caught:
        simulated(path, tmp_path / "out", overrides={"arrivals": LONG})
    assert isinstance(caught.value, scout.Interrupted)
    check_partial(caught.value)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


async def test_ctrl_c_in_a_notebook_leaves_a_partial_result(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting_once_it_runs(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    try:
        simulated(path, tmp_path / "out", overrides={"arrivals": LONG})
    except scout.Interrupted as interrupted:
        check_partial(interrupted)
    else:
        pytest.fail("not interrupted")


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(scout.InputError, match="gone: no such folder"):
        scout.load(tmp_path / "gone")
    with pytest.raises(scout.InputError, match="not a run folder"):
        scout.load(tmp_path)
    with pytest.raises(scout.InputError, match="needs a folder"):
        scout.load()
