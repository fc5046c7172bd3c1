"""One run over three Ray nodes whose clocks, file systems and processes are their own, against one machine."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from reports.summary import STAGES
from tests.support.commands import CONFIGS, ENVIRONMENT, REPOSITORY, Finished, scout

THREE_NODES = REPOSITORY / "tests/support/three_nodes.sh"
EDGE, CLOUD = {"labels": {"site": "b"}}, {"resources": {"node_c": 1}}


@cache
def why_not() -> str:
    """Why this machine can't be three; empty: it can."""
    if os.geteuid() != 0:
        return "three nodes on one machine need root"
    for tool in ("ip", "nsenter", "unshare", "setpriv"):
        if shutil.which(tool) is None:
            return f"three nodes on one machine need `{tool}`"
    tried = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--time", "--fork", "--mount-proc", "true"]
    done = subprocess.run(tried, capture_output=True, text=True, check=False)
    return f"no namespaces for three nodes: {done.stderr.strip()}" if done.returncode else ""


def over_three_nodes(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`scout` with these arguments, on the first of three nodes."""
    if reason := why_not():
        pytest.skip(reason)
    return subprocess.run(
        [THREE_NODES, sys.executable, "-m", "cluster", *map(str, arguments)],
        cwd=REPOSITORY, env=ENVIRONMENT | {"PYTHON": sys.executable} | environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder that all nodes see, unlike /tmp."""
    folder = REPOSITORY / "runs" / f"three-nodes-{os.getpid()}"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def congestion(folder: Path) -> tuple[Path, Path]:
    """The shipped scenario, shortened: on one machine, and over three nodes."""
    data = yaml.safe_load((CONFIGS / "congestion.yaml").read_text())
    data |= {"arrivals": {"kind": "synchronized", "rounds": 1, "period_s": 1}, "lateness_limit_ms": 5000}
    alone, spread = folder / "alone.yaml", folder / "spread.yaml"
    alone.write_text(yaml.safe_dump(data))
    for group in data["agents"]["groups"][:3]:
        group |= {"node": "edge", "per_actor": 3}
    data["cloud"]["node"] = "cloud"
    data["cluster"] = {"nodes": {"edge": EDGE, "cloud": CLOUD}}
    spread.write_text(yaml.safe_dump(data))
    return alone, spread


def met(run: Finished) -> dict[str, int]:
    return {name: summary["met"] for name, summary in run.summary["allocators"].items()}


@pytest.mark.measuring
@pytest.mark.timeout(400)
def test_over_three_nodes_it_is_what_it_is_on_one_machine(shared: Path, kernel_link: None) -> None:
    alone, spread = congestion(shared)
    done = over_three_nodes("run", spread, "--out", shared / "spread")
    assert done.returncode == 0, done.stdout + done.stderr
    three = Finished(0, done.stdout, done.stderr, shared / "spread")
    done = scout("run", alone, "--out", shared / "alone")
    assert done.returncode == 0, done.stderr
    one = Finished(0, done.stdout, done.stderr, shared / "alone")

    rows = three.ledger
    assert len(rows) == three.summary["issued"] == 8 and not three.summary["partial"]
    assert all(abs(number - met(one)[name]) <= 1 for name, number in met(three).items()), (met(three), met(one))
    stages = [f"{stage}_ms" for stage in STAGES]
    assert rows[[*stages, "first_byte_ms"]].min().min() >= 0, rows[stages].min()
    equal = pd.concat(
        [run.ledger[run.ledger.allocator == "equal"].set_index("agent_id") for run in (one, three)], axis=1
    )
    before, after = equal.transfer_ms.to_numpy().T
    assert (abs(after / before - 1) < 0.05).all(), "the link is the same, wherever its ends are"

    nodes = {node["hostname"]: node for node in three.summary["nodes"]}
    assert {name: (node["hosts"], node["workers"]) for name, node in nodes.items()} == {
        "node-b": (1, 0),
        "node-c": (0, 4),
    }
    for node in nodes.values():
        assert node["clock_error_ms"] < 0.5, "of clocks that are a thousand seconds apart"
        assert node["up_mbps"] > 100 and node["down_mbps"] > 100 and node["round_trip_ms"] > 0 and not node["slow"]
    assert not [name for name in three.summary["relay"] if name.startswith("refused")]
    assert three.summary["relay"]["agents"] == 12 and one.summary["relay"] == {} and one.summary["nodes"] == []
