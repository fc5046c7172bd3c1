"""The command line in processes of its own, as users run it."""

import atexit
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
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


# A command's process is forked from one that has imported what most commands import: that takes 2 s, the rest little.
# Ray and torch are not among it: processes that fork should have no threads, and each live run starts Ray anew.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [__name__, "typer", "rich.table", "cluster.simulated.engine", "cluster.experiments.compare", "reports.page"]
)


def scout(
    *arguments: str | Path, timeout_s: float = 120, environment: Mapping[str, str] = ENVIRONMENT
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in a process of its own. Raises subprocess.TimeoutExpired."""
    command = ["scout", *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        files = [DupFd(file.fileno()) for file in (stdout, stderr)]
        process = FORKS.Process(target=_command, args=(command, dict(environment), *files))
        process.start()
        process.join(timeout_s)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read())
        if late:
            raise subprocess.TimeoutExpired(command, timeout_s, *texts)
        assert process.exitcode is not None
        return subprocess.CompletedProcess(command, process.exitcode, *texts)


def _command(arguments: list[str], environment: dict[str, str], stdout: Any, stderr: Any) -> None:
    """In the forked process: `scout` with these arguments, as if it had been started so."""
    for descriptor, file in ((1, stdout), (2, stderr)):
        os.dup2(file.detach(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    sys.argv = arguments
    from cluster.cli.app import main  # only now: its consoles ask where they write to

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


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
