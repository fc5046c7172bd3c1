"""What README and docs show must work: their scenario parses, their commands exist, their tables name what there is."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from agents.arrivals import ARRIVALS
from agents.estimators import ESTIMATORS
from allocator.policies import POLICIES
from cluster.cli.app import app
from cluster.experiments.problem_file import load_problem
from cluster.scenario.events import EVENTS
from cluster.scenario.schema import AgentGroup, Scenario, UplinkSettings
from cluster.scenario.yaml_document import Document
from models.profiles import load_profile
from netem.channels import CHANNELS
from netem.impairments import Impairment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(path.read_text(encoding="utf-8")) if kind == language]


COMMANDS = [
    line.partition("#")[0].partition(">")[0].strip()
    for page in PAGES
    for block in blocks(page, "sh")
    for line in block.splitlines()
    if line.strip()
]


def test_the_scenario_of_the_docs_loads(tmp_path: Path) -> None:
    scenario, long_profile, profile = blocks(ROOT / "docs" / "scenarios.md", "yaml")
    (tmp_path / "my-profiles.yaml").write_text(profile + long_profile)
    assert load_profile("my-profiles.yaml/my-long-model", tmp_path).lengths is not None
    loaded = Scenario.from_document(Document(tmp_path / "example.yaml", scenario))
    assert len(loaded.agent_profiles) == 3
    assert loaded.impairments.active
    described = yaml.safe_load(scenario)
    assert set(described) == set(Scenario.model_fields) - {"base_dir"}, "every key is described"
    assert set(described["uplink"]) == set(UplinkSettings.model_fields)
    text = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    assert [key for key in (*AgentGroup.model_fields, *Impairment.model_fields) if key not in text] == []


@pytest.mark.parametrize(
    "registry",
    [CHANNELS, ESTIMATORS, ARRIVALS, POLICIES, EVENTS],
    ids=["channels", "estimators", "arrivals", "allocators", "events"],
)
def test_every_registered_name_is_described(registry: dict[str, object]) -> None:
    text = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    assert [name for name in registry if f"`{name}`" not in text] == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("scout ")])
def test_scout_commands_exist_with_their_options(command: str) -> None:
    words = shlex.split(command)[1:]
    options = [word for word in words if word.startswith("--")]
    names = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)]
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*names, "--help"])
    assert shown.exit_code == 0, shown.output
    assert [option for option in options if option not in shown.output] == []
    if words[0] in ("run", "submit", "fidelity", "compare") and words[1] != "my.yaml":  # which `scout init` has written
        Scenario.load(words[1])
    if words[0] == "allocate":
        load_problem(words[1])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


# Pages that only the site has, made from the code; its own test builds them.
MADE_PAGES = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            made = page.parent.name == "docs" and target in MADE_PAGES
            assert made or "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in PAGES for number in range(len(blocks(page, "python")))],
    ids=lambda value: value.name if isinstance(value, Path) else str(value),
)
def test_python_blocks_run(page: Path, number: int, tmp_path: Path) -> None:
    """Each by itself, in an empty folder."""
    done = subprocess.run(
        [sys.executable, "-c", blocks(page, "python")[number]],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
