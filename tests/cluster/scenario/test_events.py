"""Events in a scenario: random times come from its seed, and mistakes are told with file, line and key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import DocumentError

Write = Callable[..., Path]
KILL = {"kind": "kill", "part": "worker", "number": 1}


def test_random_times_come_from_the_seed(scenario: Write) -> None:
    events = [KILL | {"at_s": 1.5}, {"kind": "cut", "agent": 0, "for_s": 0.1, "between": [0.5, 3], "count": 20}]
    planned = Scenario.load(scenario(events=events)).event_schedule()
    times = [at_s for at_s, _ in planned]
    assert len(times) == 21 and times == sorted(times) and len(set(times)) == 21
    assert [at_s for at_s, event in planned if event.kind == "kill"] == [1.5]
    assert all(0.5 <= at_s < 3 for at_s in times)
    assert Scenario.load(scenario(events=events)).event_schedule() == planned
    assert Scenario.load(scenario(events=events, seed=7)).event_schedule() != planned


def test_a_scenario_with_events_is_read_back_from_its_run_folder(scenario: Write) -> None:
    loaded = Scenario.load(scenario(events=[KILL | {"between": [1, 2]}, {"kind": "deadline", "ms": 9, "at_s": 1}]))
    assert Scenario.model_validate(loaded.resolved() | {"base_dir": loaded.base_dir}) == loaded


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"kind": "explode", "at_s": 1}, "events[0].kind: 'explode' is not one of 'uplink', 'deadline'"),
        ({"part": "worker", "at_s": 1}, "events[0].kind: is missing; one of uplink, deadline, allocator, pause, cut"),
        (KILL, "events[0]: at_s is missing (or between: [first, last] for a random time)"),
        (KILL | {"at_s": 1, "between": [1, 2]}, "events[0]: has both at_s and between"),
        (KILL | {"between": [2, 1]}, "events[0]: between [2.0, 1.0]: the second time must be later than the first"),
        (KILL | {"at_s": 1, "count": 2}, "events[0]: count needs between"),
        (KILL | {"at_s": -1}, "events[0].at_s: -1: input should be greater than or equal to 0"),
        (KILL | {"at_s": 5.5}, "events[0]: 5.5 s is after the turn's end: its last request ends by 5.4 s"),
        (KILL | {"at_s": 1, "number": 2}, "events[0]: no worker 2; there are 2, from 0 on"),
        ({"kind": "kill", "part": "host", "number": 2, "at_s": 1}, "events[0]: no agent 2; there are 2, from 0 on"),
        ({"kind": "kill", "part": "helper", "number": 1, "at_s": 1}, "events[0]: number 1: there is one helper"),
        ({"kind": "kill", "part": "driver", "at_s": 1}, "events[0].part: 'driver': input should be 'host', 'worker'"),
        ({"kind": "cut", "agent": 2, "at_s": 1}, "events[0]: no agent 2; there are 2, from 0 on"),
        ({"kind": "freeze", "part": "worker", "at_s": 1}, "events[0].for_s: is missing"),
        ({"kind": "deadline", "at_s": 1, "seconds": 2}, "events[0].seconds: unknown key; allowed here: at_s, between"),
        ({"kind": "allocator", "policy": "best", "at_s": 1}, "events[0]: no allocator 'best'; there are"),
        ({"kind": "allocator", "policy": "static_nf4", "at_s": 1}, "events[0]: static_nf4: "),
    ],
)
def test_mistakes_are_told_with_their_place(scenario: Write, event: dict[str, Any], message: str) -> None:
    path = scenario(events=[event])
    line = next(n for n, text in enumerate(path.read_text().splitlines(), start=1) if text.startswith("events:"))
    with pytest.raises(DocumentError) as wrong:
        Scenario.load(path)
    told = str(wrong.value)
    assert message in told
    number = int(told.removeprefix(f"{path}:").partition(":")[0])
    assert line < number <= line + 6
