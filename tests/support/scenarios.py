"""A tiny scenario of two agents: on an equal share the larger cache is late, on a share by size both are in time."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.support.commands import REPOSITORY

DATA = REPOSITORY / "tests" / "cluster" / "data"


def write_scenario(folder: Path, **changes: Any) -> Path:
    """Write the tiny scenario, with top-level keys replaced, beside its profiles."""
    shutil.copy(DATA / "tiny-profiles.yaml", folder)
    data = yaml.safe_load((DATA / "tiny.yaml").read_text()) | changes
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(data))
    return path
