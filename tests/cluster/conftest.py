"""Running the command line as its users do, on one Ray cluster for all tests that don't kill theirs."""

import functools
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import ENVIRONMENT, Finished, scout
from tests.support.scenarios import write_scenario


@pytest.fixture(scope="session")
def ray_head() -> Iterator[str]:
    """The address of a running cluster with 4 (nominal) CPUs and one (nominal) GPU, as `ray start --head` makes it."""
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--num-cpus=4", "--num-gpus=1", "--port=0"]
    command += ["--disable-usage-stats", "--object-store-memory=134217728", "--block"]
    # In the foreground, to be ended by its id: `ray stop` ends every cluster on the machine.
    head = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
    assert head.stdout
    address, said = None, ""
    while address is None:
        line = head.stdout.readline()
        assert line, f"ray start ended: {said}"
        said += line
        address = next((part for part in line.split("'") if re.fullmatch(r"[\d.]+:\d+", part)), None)
    threading.Thread(target=head.stdout.read, daemon=True).start()  # lest it blocks on a full pipe
    try:
        yield address
    finally:
        head.terminate()
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            head.kill()


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny scenario, with top-level keys replaced."""
    return functools.partial(write_scenario, tmp_path)


@pytest.fixture
def live_run(ray_head: str, tmp_path: Path) -> Callable[..., Finished]:
    """Runs a scenario live on the session's cluster."""

    def run(path: Path, *arguments: str) -> Finished:
        run_dir = tmp_path / "run"
        done = scout("run", str(path), "--out", str(run_dir), "--address", ray_head, *arguments)
        return Finished(done.returncode, done.stdout, done.stderr, run_dir)

    return run
