"""Scenarios and problems that ship with the project, found by name: `congestion`, `eight-agents`."""

from importlib import resources
from pathlib import Path

from cluster.scenario.yaml_document import DocumentError

CONFIGS = Path(str(resources.files("configs")))
TEMPLATE = CONFIGS / "templates" / "scenario.yaml"  # what `scout init` writes


def scenarios() -> dict[str, Path]:
    """The scenarios that ship with the project, by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}


def problems() -> dict[str, Path]:
    """The allocation problems that ship with the project, by name."""
    return {path.stem: path for path in sorted((CONFIGS / "problems").glob("*.json"))}


def find_scenario(given: str | Path) -> Path:
    """The file of a scenario. A file that exists goes before a name.

    Args:
        given: a path, or the name of a scenario that ships with the project.

    Raises:
        DocumentError: there is neither; the message lists the names.
    """
    return _find(given, scenarios(), "scenarios")


def find_problem(given: str | Path) -> Path:
    """The file of an allocation problem, by path or name; otherwise as `find_scenario`."""
    return _find(given, problems(), "problems")


def _find(given: str | Path, by_name: dict[str, Path], kind: str) -> Path:
    path = Path(given)
    if path.is_file() or (path.exists() and str(given) not in by_name):  # a folder `congestion` hides no name
        return path
    if str(given) in by_name:
        return by_name[str(given)]
    raise DocumentError(f"{given}: No such file, nor one of the {kind} that ship with Scout: {', '.join(by_name)}")
