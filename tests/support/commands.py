"""The command line in processes of its own, as users run it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
# As in an activated environment (a job's `python` is found on the path), with Ray's token authentication on.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
ENVIRONMENT = os.environ | {"RAY_AUTH_MODE": "token", "COLUMNS": "200", "PATH": PATH}


@dataclass
class Finished:
    """What a command did."""

    returncode: int
    stdout: str
    stderr: str
    run_dir: Path

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "summary.json").read_text())

    @property
    def ledger(self) -> pd.DataFrame:
        return pd.read_parquet(self.run_dir / "ledger.parquet")


def scout(
    *arguments: str | Path, timeout_s: float = 120, environment: Mapping[str, str] = ENVIRONMENT
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment,
        cwd=REPOSITORY,
        check=False,
    )


def started(
    *arguments: str | Path, environment: Mapping[str, str] = ENVIRONMENT, **options: Any
) -> "subprocess.Popen[str]":
    """Start a command; its output is piped, unless `options` (of Popen) say otherwise."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-m", "cluster", *arguments],
        env=environment,
        cwd=REPOSITORY,
        text=True,
        **(pipes | options),
    )
