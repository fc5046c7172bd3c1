"""A scenario that only a simulation can hold is refused live in a line, before anything starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.live.placement import PlacementError
from cluster.live.preflight import check_size
from cluster.scenario.schema import Scenario
from cluster.simulated.engine import SimulatedEngine

Write = Callable[..., Path]
FAST = {"channel": {"kind": "constant", "mbps": 100_000}}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"agents": {"groups": [{"profile": "tiny-profiles.yaml/small", "count": 1025}]}},
            "agents: 1025; ",
        ),
        ({"cloud": {"workers": 65}}, "cloud.workers: workers: 65; a live link has room for 64"),
        ({"uplink": FAST}, "uplink.channel or events: Mbit/s: 100000; a live link has room for 10000"),
    ],
)
def test_what_only_simulations_can_hold_is_refused(changes: dict[str, Any], named: str, scenario: Write) -> None:
    with pytest.raises(PlacementError, match=named):
        check_size(Scenario.load(scenario(**changes)))


def test_simulations_hold_it(scenario: Write) -> None:
    larger = Scenario.load(scenario(cloud={"workers": 65}, uplink=FAST))
    result = SimulatedEngine(larger).run()
    assert len(result.workers) == 65
    assert all(turn.records and len(turn.records) == len(turn.issued) for turn in result.turns)


def test_others_are_not_refused(scenario: Write) -> None:
    check_size(Scenario.load(scenario(cloud={"workers": 64})))
