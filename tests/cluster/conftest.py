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


def start_head() -> tuple["subprocess.Popen[str]", str, str]:
    """`ray start --head`, its address ("" where it ended), and all that it said until then."""
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--num-cpus=4", "--num-gpus=1", "--port=0"]
    command += ["--disable-usage-stats", "--object-store-memory=134217728", "--block"]
    # In the foreground, to be ended by its id: `ray stop` ends every cluster on the machine.
    head = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
    assert head.stdout
    said = ""
    for line in head.stdout:
        said += line
        if found := re.search(r"'([\d.]+:\d+)'", line):
            threading.Thread(target=head.stdout.read, daemon=True).start()  # lest it blocks on a full pipe
            return head, found[1], said
    head.wait()
    return head, "", said


@pytest.fixture(scope="session")
def ray_head() -> Iterator[str]:
    """The address of a running cluster with 4 (nominal) CPUs and one (nominal) GPU, as `ray start --head` makes it."""
    head, address, said = start_head()
    if "timed out during startup" in said:  # Ray gives itself 30 s, which a busy machine may not
        head, address, said = start_head()
    assert address, f"ray start ended: {said}"
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
