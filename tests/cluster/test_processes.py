"""Stolen CPU time is counted and said."""

from pathlib import Path

import pytest

from cluster import processes
from cluster.processes import StealMeter
from cluster.run_folder.accounting import begin, finish
from cluster.run_folder.result import RunResult, Turn
from cluster.scenario.schema import Scenario

TINY = Scenario.load(Path(__file__).parent / "data" / "tiny.yaml")


def test_the_share_is_of_all_cpu_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    monkeypatch.setattr(processes, "STAT", stat)
    stat.write_text("cpu  100 0 50 800 10 0 40 7 3 1\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    meter = StealMeter()
    assert meter.share() == 0
    stat.write_text("cpu  130 5 60 820 10 5 50 27 33 1\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    assert meter.share() == pytest.approx(20 / 100)


def test_on_this_machine() -> None:
    assert 0 <= StealMeter().share() <= 1


def test_a_turn_that_was_robbed_says_so(tmp_path: Path) -> None:
    facts = begin(TINY, tmp_path, "live")
    facts.link, facts.privilege = "kernel", "root"
    turns = [Turn("equal", stolen=0.04), Turn("model_aware", stolen=0.4)]
    warnings = finish(TINY, tmp_path, facts, RunResult(turns, ["stopped"])).warnings
    (robbed,) = [warning for warning in warnings if "to others" in warning]
    assert robbed.startswith("model_aware: the host gave 40 % of this machine's CPU time to others")
