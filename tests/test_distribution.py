"""The wheel holds what the packages hold, and works in an empty folder without the models' extra."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.support.commands import REPOSITORY
from tests.test_architecture import ORDER

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("build"), reason="needs build: pip install 'scout-emulator[dev]'"
)
# As where the extra isn't installed: what the tests' own environment has of it can't be imported.
WITHOUT_MODELS = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*", "runs", "build", "dist", "site")
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def installed(built: Path) -> Path:
    """A folder to put first on the path, with the wheel's files in it."""
    site = built / "site"
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    (site / "sitecustomize.py").write_text(WITHOUT_MODELS)
    return site


def python(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_the_wheel_holds_every_file_of_the_packages(built: Path) -> None:
    paths = [path for package in ORDER for path in (REPOSITORY / package).rglob("*") if path.is_file()]
    here = {str(path.relative_to(REPOSITORY)) for path in paths if path.suffix not in (".pyc", ".pyo")}
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        there = {name for name in wheel.namelist() if ".dist-info/" not in name}
        metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    assert there == here
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert not [line for line in required if "torch" in line or "transformers" in line]


def test_the_sdist_holds_what_developers_need(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = ["Makefile", "constraints.txt", "docs/architecture.md", "tests/cluster/data/tiny.yaml", "README.md"]
    assert [name for name in wanted if name not in names] == []


def test_a_scenario_runs_from_the_wheel_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    arguments = ("run", "congestion", "--engine", "simulated", "--out", "run")
    done = python(installed, tmp_path, "-m", "cluster", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["scenario"] == "congestion"
    where = python(installed, tmp_path, "-c", "import cluster, configs; print(cluster.__file__, configs.__file__)")
    assert where.stdout.split() == [str(installed / name / "__init__.py") for name in ("cluster", "configs")]


def test_the_command_starts_without_what_only_some_commands_use(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sys, cluster.cli.app; print(*{'ray', 'pandas', 'scipy', 'matplotlib', 'aiohttp'} & sys.modules.keys())"
    )
    done = python(installed, tmp_path, "-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize(
    "arguments",
    ["quality", "calibrate family/tiny --cloud family/base --out p.yaml", "bench codec", "run small-family"],
)
def test_without_the_extra_commands_say_how_to_get_it(installed: Path, tmp_path: Path, arguments: str) -> None:
    done = python(installed, tmp_path, "-m", "cluster", *arguments.split())
    assert done.returncode == 2
    assert "pip install 'scout-emulator[models]'" in done.stderr and "Traceback" not in done.stderr


def test_the_citation_names_this_version_and_licence() -> None:
    """The keys that the Citation File Format 1.2 requires, and what must agree with pyproject.toml."""
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert all(author.get("name") or author.get("family-names") for author in citation["authors"])
