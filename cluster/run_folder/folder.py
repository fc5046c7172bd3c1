"""The run folder: what a run was, so that it can be told apart and understood later."""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from cluster.scenario.schema import Scenario

RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
SCENARIO_FILE = "scenario.yaml"
CHANNEL_FILE = "channel.csv"
PACKAGES = ("scout-emulator", "ray", "pyroute2", "numpy", "pandas", "pyarrow", "pydantic")


class RunFolderError(ValueError):
    """The run folder can't be used; the message says why."""


def create(out: Path | None, scenario: Scenario) -> Path:
    """A new run folder: `out`, or the default one.

    Raises:
        RunFolderError: it exists and isn't empty, or can't be made.
    """
    folder = claim(out or default_folder(scenario))
    try:
        (folder / SCENARIO_FILE).write_text(yaml.safe_dump(scenario.resolved(), sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{folder}: {error.strerror}") from None
    return folder


def claim(folder: Path) -> Path:
    """The folder, made if it isn't there.

    Raises:
        RunFolderError: it exists and isn't empty, or can't be made.
    """
    folder = folder.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RunFolderError(f"{folder} is not empty; a run needs a folder of its own")
    except OSError as error:
        raise RunFolderError(f"{folder}: {error.strerror}") from None
    return folder


def discard(folder: Path) -> None:
    """Remove the folder of a run that was refused before it began; nothing but what this module wrote goes."""
    for name in (SCENARIO_FILE, RUN_FILE):
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        pass  # somebody else put something there


def read(folder: Path) -> tuple[dict[str, Any], Scenario]:
    """What `run.json` says, and the scenario as it was resolved.

    Raises:
        RunFolderError: they can't be read.
    """
    try:
        facts = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        data = yaml.safe_load((folder / SCENARIO_FILE).read_text(encoding="utf-8"))
        base_dir = facts["base_dir"]
        return facts, Scenario.model_validate(data | {"base_dir": base_dir}, context={"base_dir": base_dir})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder} is not a run folder: {' '.join(str(error).split())}") from None


def default_folder(scenario: Scenario) -> Path:
    """`runs/<UTC time>-<scenario>` below the working directory."""
    return Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{scenario.name}"


def describe_machine() -> dict[str, Any]:
    """Hardware and versions, as far as they matter to a result."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # as in a job, which may run from its working directory alone


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write in one step: a reader sees the old file or the new one."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    beside.replace(path)
