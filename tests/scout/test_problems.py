"""Single problems and channels from Python: the answers and messages of the commands."""

import json
from pathlib import Path
from typing import Any

import pytest

import scout
from allocator.policies.equal import Equal
from tests.support.commands import scout as command

OWN: dict[str, Any] = {
    "uplink_mbps": 10,
    "deadline_ms": 1000,
    "agents": [{"name": "<b>", "modes": {"full": {"payload_bytes": 500_000, "quality": 90}}}],
}


def test_a_problem_by_name_has_the_command_s_answer() -> None:
    done = command("allocate", "eight-agents", "--json")
    found = scout.allocate("eight-agents")
    assert found.document == json.loads(done.stdout)
    assert found.assignments.meets_deadline.sum() == found.deadlines_met
    assert scout.allocate("eight-agents", Equal).document["policy"].endswith(":Equal")


def test_a_problem_may_be_a_mapping() -> None:
    found = scout.allocate(OWN)
    assert found.deadlines_met == 1 and found.assignments.loc["<b>"].latency_ms == pytest.approx(400)
    assert "&lt;b&gt;" in found._repr_html_() and "<b>" not in found._repr_html_()
    with pytest.raises(scout.InputError, match="uplink_mbps: -1: input should be greater"):
        scout.allocate(OWN | {"uplink_mbps": -1})
    with pytest.raises(scout.InputError, match="problem: not JSON"):
        scout.allocate(OWN | {"agents": object()})
    with pytest.raises(scout.InputError, match="no allocator 'best'"):
        scout.allocate(OWN, "best")


def test_a_channel_is_a_table_that_can_be_a_trace(tmp_path: Path) -> None:
    played = scout.channel("markov", seed=3, steps=10)
    assert list(played.rates.columns) == ["t_s", "mbps"] and len(played.rates) == 10
    played.rates.to_csv(tmp_path / "trace.csv", index=False)
    again = scout.channel("trace", seed=0, steps=10, settings={"path": str(tmp_path / "trace.csv")})
    assert again.rates.mbps.tolist() == pytest.approx(played.rates.mbps.tolist())
    with pytest.raises(scout.InputError, match="no channel 'radio'; there are constant, "):
        scout.channel("radio")
    with pytest.raises(scout.InputError, match="steps 0: from 1 to"):
        scout.channel("markov", steps=0)
