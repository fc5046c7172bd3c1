"""Run folders: one is made for each run, and read again to recover or to watch it."""

import itertools
from datetime import UTC, datetime
from pathlib import Path

import yaml

from cluster.processes import started_at
from cluster.scenario.schema import Scenario
from configs.reading import is_unicode, read_text
from configs.yaml_text import load_yaml
from reports import files
from reports.runs import MAX_SCENARIO_BYTES
from reports.schema import RunFacts


class RunFolderError(ValueError):
    """The run folder can't be used; the message says why."""


def create(out: Path | None, scenario: Scenario) -> Path:
    """A new run folder: `out`, or the default one.

    Raises:
        RunFolderError: it exists and isn't empty, or can't be made.
    """
    folder = claim(out) if out else claim_default(scenario)
    try:
        (folder / files.SCENARIO).write_text(yaml.safe_dump(scenario.resolved(), sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{folder}: {error.strerror}") from None
    return folder


def claim(folder: Path) -> Path:
    """The folder, made if it isn't there.

    Raises:
        RunFolderError: it exists and isn't empty, or can't be made.
    """
    folder = folder.resolve()
    if not is_unicode(str(folder)):
        raise RunFolderError(f"{folder}: the path isn't UTF-8")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RunFolderError(f"{folder} is not empty; a run needs a folder of its own")
    except OSError as error:
        raise RunFolderError(f"{folder}: {error.strerror}") from None
    return folder


def claim_default(scenario: Scenario) -> Path:
    """The default folder, made; with a number if another run took it within the second. Raises as `claim` does."""
    first = default_folder(scenario).resolve()
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise RunFolderError(f"{folder}: {error.strerror}") from None
    raise AssertionError("numbers don't end")


def discard(folder: Path) -> None:
    """Remove the folder of a run that was refused before it began, unless it holds other files."""
    for name in (files.SCENARIO, files.RUN):
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        pass  # somebody else put something there


def read(folder: Path) -> tuple[RunFacts, Scenario]:
    """The facts about a run, and its scenario as it was resolved.

    Raises:
        RunFolderError: they can't be read.
    """
    try:
        facts = RunFacts.read(folder / files.RUN)
        data = load_yaml(read_text(folder / files.SCENARIO, MAX_SCENARIO_BYTES))
        base_dir = facts.base_dir
        return facts, Scenario.model_validate(data | {"base_dir": base_dir}, context={"base_dir": base_dir})
    except (OSError, ValueError, TypeError) as error:
        raise RunFolderError(f"{folder} is not a run folder: {' '.join(str(error).split())}") from None


def default_folder(scenario: Scenario) -> Path:
    """`runs/<UTC time>-<scenario>` below the working directory."""
    return Path("runs") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{scenario.name}"


def is_running(facts: RunFacts) -> bool:
    """Whether the driver of a run is still there: a process of its number that was started when it was."""
    return facts.pid_started is not None and started_at(facts.pid) == facts.pid_started
