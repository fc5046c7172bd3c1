"""The schema accepts what `Scenario.load` accepts, and refuses the mistakes that a schema can show."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.scenario.json_schema import scenario_schema
from cluster.scenario.schema import Scenario
from cluster.scenario.shipped import CONFIGS, TEMPLATE, scenarios
from cluster.scenario.yaml_document import DocumentError
from cluster.simulated.engine import SimulatedEngine

SCHEMA = Draft202012Validator(scenario_schema())
POISSON = {"kind": "poisson", "rate_per_s": 1, "duration_s": 5}
GOOD: dict[str, Any] = {
    "name": "x",
    "deadline_ms": 5000,
    "uplink": {"channel": {"kind": "constant", "mbps": 50}},
    "arrivals": POISSON,
    "agents": {"groups": [{"profile": "measured/qwen2.5-7b"}]},
}


def both(tmp_path: Path, data: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the schema accepts a scenario, and whether it loads."""
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(data))
    try:
        Scenario.load(tmp_path / "s.yaml")
    except DocumentError:
        return SCHEMA.is_valid(data), False
    return SCHEMA.is_valid(data), True


def test_the_schema_is_one_and_is_shipped_as_printed() -> None:
    Draft202012Validator.check_schema(SCHEMA.schema)
    printed = CliRunner().invoke(app, ["schema"]).stdout
    assert json.loads(printed) == SCHEMA.schema
    path = CONFIGS / "scenario.schema.json"
    assert path.read_text() == printed, f"make it again: scout schema > {path}"


@pytest.mark.parametrize("path", [*scenarios().values(), TEMPLATE], ids=lambda path: path.stem)
def test_what_ships_satisfies_the_schema_and_names_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=scenario.schema.json\n")
    assert [error.message for error in SCHEMA.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"allocators": ["equal", {"policy": "deadline", "hedge": True}]},
        {"modes": ["int8", "local"]},
        {"uplink": {"channel": {"kind": "ar1", "scenario": "vehicular", "step_s": 2}}},
        {"uplink": {"channel": {"kind": "ar1", "mean": 5, "std": 1, "min": 1, "max": 9, "rho": 0.5}}},
        {"uplink": {"channel": {"kind": "cellular", "cell": "lte_driving"}}},
        {"events": [{"kind": "cut", "agent": 0, "between": [1, 2], "count": 2}]},
    ],
)
def test_good_scenarios(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert both(tmp_path, GOOD | changes) == (True, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"deadline_ms": 0},
        {"deadline": 5000},
        {"base_dir": "/"},
        {"allocators": []},
        {"allocators": [{"hedge": True}]},
        {"uplink": {"channel": {"mbps": 50}}},
        {"uplink": {"channel": {"kind": "radio"}}},
        {"uplink": {"channel": {"kind": "ar1", "mean": 5}}},
        {"uplink": {"channel": {"kind": "ar1", "scenario": "nowhere"}}},
        {"arrivals": POISSON | {"rounds": 3}},
        {"agents": {"groups": []}},
        {"agents": {"groups": [{"profile": "measured/qwen2.5-7b", "count": 0}]}},
        {"events": [{"kind": "explode", "at_s": 1}]},
    ],
)
def test_broken_scenarios(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert both(tmp_path, GOOD | changes) == (False, False)


def _undescribed(schema: dict[str, Any]) -> list[str]:
    parts: dict[str, dict[str, Any]] = {"": schema, **schema["$defs"]}
    keys = [(name, key, found) for name, part in parts.items() for key, found in part.get("properties", {}).items()]
    without = [f"{name}.{key}" for name, key, found in keys if key != "kind" and not found.get("description")]
    return without + [name for name, part in parts.items() if not part.get("description")]


def test_everything_in_it_is_described() -> None:
    assert _undescribed(SCHEMA.schema) == []


def test_init_writes_a_scenario_that_runs(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    invoke: Callable[..., Any] = CliRunner().invoke
    assert invoke(app, ["init", str(file)]).exit_code == 0
    scenario = Scenario.load(file)
    assert [turn.allocator for turn in SimulatedEngine(scenario).run().turns] == ["equal", "deadline"]
    file.write_text("mine")
    for name, message in (("mine.yaml", "exists already"), ("mine.txt", ".yaml"), ("gone/mine.yaml", "No such file")):
        refused = invoke(app, ["init", str(tmp_path / name)])
        assert refused.exit_code == 2 and message in refused.stderr
    assert file.read_text() == "mine"
