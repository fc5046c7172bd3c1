"""Every published figure comes out to the printed digit, and what doesn't would be noticed."""

import json
from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.experiments.reproduce import agrees, load_published, reproduce, show
from tests.support.commands import scout


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return reproduce(load_published())


PROTOCOL = {
    1000: {"static_int8": (99.6, 58.6), "static_int4": (96.2, 74.9), "adaptive": (102.6, 74.9)},
    3000: {"static_int8": (99.6, 74.9), "static_int4": (96.2, 88.3), "adaptive": (105.8, 88.3)},
    5000: {"static_int8": (99.6, 88.3), "static_int4": (96.2, 100.0), "adaptive": (107.1, 100.0)},
}
MULTI_AGENT = {
    (4, 50): {"equal": (405.8, 0.0), "model_aware": (405.9, 100.0), "quality_max": (408.0, 100.0)},
    (4, 100): {"equal": (409.6, 100.0), "model_aware": (414.7, 100.0), "quality_max": (414.7, 100.0)},
    (4, 200): {"equal": (414.7, 100.0), "model_aware": (414.7, 100.0), "quality_max": (414.7, 100.0)},
    (8, 50): {"equal": (800.6, 0.0), "model_aware": (767.9, 0.0), "quality_max": (798.1, 0.0)},
    (8, 100): {"equal": (800.6, 0.0), "model_aware": (800.8, 100.0), "quality_max": (803.3, 4.6)},
    (8, 200): {"equal": (811.9, 100.0), "model_aware": (822.8, 100.0), "quality_max": (816.7, 99.6)},
}


@pytest.mark.parametrize("deadline_ms", PROTOCOL)
def test_protocol_figures(found: dict[str, Any], deadline_ms: int) -> None:
    rows = [row for row in found["protocol"] if row["deadline_ms"] == deadline_ms]
    published = PROTOCOL[deadline_ms] | {"static_scout": (95.0, 100.0), "static_local": (75.0, 100.0)}
    computed = {
        row["policy"]: (round(row["reached"]["credited"], 1), round(row["reached"]["met_pct"], 1))
        for row in rows
        if row["estimator"] == "oracle" and row["policy"] in published
    }
    assert computed == published


@pytest.mark.parametrize(("agents", "mbps"), MULTI_AGENT)
def test_multi_agent_figures(found: dict[str, Any], agents: int, mbps: int) -> None:
    rows = [row for row in found["multi_agent"] if (row["agents"], row["uplink_mbps"]) == (agents, mbps)]
    published = MULTI_AGENT[agents, mbps]
    computed = {
        row["policy"]: (round(row["reached"]["credited"], 1), round(row["reached"]["met_pct"], 1))
        for row in rows
        if row["policy"] in published
    }
    assert computed == published


def test_ours_meets_all_that_the_random_search_missed(found: dict[str, Any]) -> None:
    for name in ("deadline", "optimal"):
        (row,) = [
            row for row in found["multi_agent"] if (row["agents"], row["uplink_mbps"], row["policy"]) == (8, 100, name)
        ]
        assert row["reached"]["met_pct"] == 100
        assert row["reached"]["delivered"] == pytest.approx(812.5)


def test_nobody_delivers_more_than_the_optimum_or_than_is_credited(found: dict[str, Any]) -> None:
    best = {
        (row["agents"], row["uplink_mbps"]): row["reached"]["delivered"]
        for row in found["multi_agent"]
        if row["policy"] == "optimal"
    }
    for row in found["multi_agent"]:
        assert row["reached"]["delivered"] <= row["reached"]["credited"] + 1e-9
        assert row["reached"]["delivered"] <= best[row["agents"], row["uplink_mbps"]] + 1e-9


def test_choosing_by_estimates_misses_what_the_published_choice_by_the_true_rate_meets(found: dict[str, Any]) -> None:
    at_1_s = {
        row["estimator"]: row["reached"]["met_pct"]
        for row in found["protocol"]
        if row["policy"] == "adaptive" and row["deadline_ms"] == 1000
    }
    assert at_1_s["ewma"] <= at_1_s["published_ewma"] < at_1_s["oracle"]


@pytest.mark.parametrize(
    ("value", "printed", "expected"),
    [
        (102.59, 102.6, True),
        (102.66, 102.6, False),
        (100.0, 100, True),
        (99.6, 100, False),
        (74.95, 74.9, True),
        (0, 0, True),
    ],
)
def test_agreement_to_the_printed_digit(value: float, printed: float, expected: bool) -> None:
    assert agrees(value, printed) is expected


def test_a_figure_that_does_not_come_out_is_noticed() -> None:
    published = load_published()
    wrong = published.model_dump() | {"protocol": published.protocol.model_dump() | {"rows": []}}
    wrong["multi_agent"]["rows"] = [{"agents": 4, "uplink_mbps": 50, "published": {"equal": [405.7, 0]}}]
    found = reproduce(type(published).model_validate(wrong))
    assert not found["agrees"]
    assert found["multi_agent"][0]["agrees"] == {"credited": False, "met_pct": True}


def test_the_command_agrees_with_all_published_figures(found: dict[str, Any]) -> None:
    done = scout("reproduce", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == found and found["agrees"]
    printed = StringIO()
    show(Console(width=110, file=printed), found)
    assert "66 of 66 published figures agree" in printed.getvalue() and "✗" not in printed.getvalue()


def test_the_command_fails_when_a_figure_does_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    published = load_published()
    protocol = published.protocol.model_copy(update={"seed": 43, "rows": published.protocol.rows[:1]})
    multi_agent = published.multi_agent.model_copy(update={"rows": []})
    other = published.model_copy(update={"protocol": protocol, "multi_agent": multi_agent})
    monkeypatch.setattr("cluster.experiments.reproduce.load_published", lambda: other)
    done = CliRunner().invoke(app, ["reproduce"])
    assert done.exit_code == 1 and "✗" in done.output
