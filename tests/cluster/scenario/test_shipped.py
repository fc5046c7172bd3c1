"""What ships with the project is found by name, wherever a file is; a file goes first."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.experiments.problem_file import load_problem
from cluster.scenario.schema import Scenario
from cluster.scenario.shipped import find_scenario, problems, scenarios
from cluster.scenario.yaml_document import DocumentError
from tests.support.commands import CONFIGS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.stdout, done.stderr


def test_scenarios_and_problems_load_by_name() -> None:
    assert Scenario.load("congestion") == Scenario.load(CONFIGS / "congestion.yaml")
    assert load_problem("eight-agents") == load_problem(CONFIGS / "problems" / "eight-agents.json")
    assert set(scenarios()) == {path.stem for path in CONFIGS.glob("*.yaml")}
    assert all(Scenario.load(name).name == name for name in scenarios())


def test_a_file_goes_before_a_name_and_a_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "congestion").mkdir()
    assert find_scenario("congestion") == CONFIGS / "congestion.yaml"
    (tmp_path / "outage").write_text("name: mine")
    assert find_scenario("outage") == Path("outage")


def test_a_name_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(DocumentError, match=r"congestin: No such file, nor one .*: 5g, bursty-cloud, .*, congestion"):
        Scenario.load("congestin")
    with pytest.raises(DocumentError, match=r"congestion: No such file, nor one of the problems .*: eight-agents$"):
        load_problem("congestion")


@pytest.mark.parametrize("command", ["run", "submit", "fidelity", "compare"])
def test_every_command_with_a_scenario_knows_the_names(command: str) -> None:
    code, _, said = invoke(command, "nowhere")
    assert code == 2
    assert "nowhere: No such file" in said and "small-family" in said


def test_commands_take_names(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _, said = invoke("run", "saturated", "--engine", "simulated", "--out", str(out))
    assert (code, json.loads((out / "summary.json").read_text())["scenario"]) == (0, "saturated"), said
    code, _, said = invoke("allocate", "eight-agents")
    assert code == 0, said


def test_the_version() -> None:
    code, shown, _ = invoke("--version")
    assert code == 0 and shown.split()[0] == "scout" and shown.split()[1][0].isdecimal()


@pytest.mark.parametrize(
    ("words", "offered"), [("run con", ["congestion"]), ("allocate ", list(problems())), ("run ./con", [])]
)
def test_shells_complete_names(words: str, offered: list[str]) -> None:
    environment = {"_SCOUT_COMPLETE": "complete_bash", "COMP_WORDS": f"scout {words}", "COMP_CWORD": "2"}
    done = CliRunner(env=environment).invoke(app, prog_name="scout")
    assert done.stdout.split() == offered
