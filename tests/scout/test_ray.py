"""Runs inside Ray: simulated ones as tasks, a live one on the connection that the process has."""

import subprocess
import sys
from pathlib import Path

from tests.support.commands import ENVIRONMENT, REPOSITORY
from tests.support.scenarios import write_scenario

SCRIPT = """
import sys
import ray
import scout

path, address, out = sys.argv[1:]
ray.init(address, log_to_driver=False)

@ray.remote(num_cpus=0.1)
def run(seed):
    overrides = {"seed": seed}
    return scout.run(path, engine="simulated", overrides=overrides, out=f"{out}/{seed}")

found = ray.get([run.remote(seed) for seed in (1, 2)])
assert [results.scenario["seed"] for results in found] == [1, 2]
assert all(len(results.ledger) == results.summary.issued > 0 for results in found)

live = scout.run(path, allocators=["model_aware"], out=f"{out}/live")
assert live.summary.engine == "live" and live.summary.issued > 0, live.summary
assert ray.is_initialized(), "the connection is left as it was"
try:
    scout.run(path, address="127.0.0.1:1", out=f"{out}/other")
except scout.UnavailableError as error:
    assert "connected to a cluster already" in str(error)
else:
    raise AssertionError("not refused")
assert ray.get(run.remote(3)).summary.issued > 0
print("done")
"""
ONCE = {"kind": "synchronized", "rounds": 1, "period_s": 1.3}


def test_tasks_and_live_runs_in_a_session_that_exists(ray_head: str, tmp_path: Path) -> None:
    path = write_scenario(tmp_path, arrivals=ONCE)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), ray_head, str(tmp_path / "out")],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("done"), done.stderr
    assert not (tmp_path / "out" / "other").exists()
