"""One run over three Ray nodes whose clocks, file systems and processes are their own, against one machine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from reports.summary import STAGES
from tests.support.commands import CONFIGS, ENVIRONMENT, REPOSITORY, Finished, scout

THREE_NODES = REPOSITORY / "tests/support/three_nodes.sh"
EDGE, CLOUD = {"labels": {"site": "c"}}, {"resources": {"node_b": 1}}
pytestmark = [pytest.mark.measuring, pytest.mark.timeout(500)]


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


def over_three_nodes(*command: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A command on the first of three nodes."""
    if reason := why_not():
        pytest.skip(reason)
    return subprocess.run(
        [THREE_NODES, *map(str, command)],
        cwd=REPOSITORY, env=ENVIRONMENT | {"PYTHON": sys.executable} | environment,
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder that all nodes see, unlike /tmp."""
    folder = REPOSITORY / "runs" / f"three-nodes-{os.getpid()}"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def write_congestion(folder: Path) -> None:
    """The shipped scenario, shortened: on one machine, and over three nodes."""
    data = yaml.safe_load((CONFIGS / "congestion.yaml").read_text())
    data |= {"arrivals": {"kind": "synchronized", "rounds": 1, "period_s": 1}, "lateness_limit_ms": 5000}
    (folder / "alone.yaml").write_text(yaml.safe_dump(data))
    for group in data["agents"]["groups"][:3]:
        group |= {"node": "edge", "per_actor": 3}
    data["cloud"]["node"] = "cloud"
    data["cluster"] = {"nodes": {"edge": EDGE, "cloud": CLOUD}}
    (folder / "spread.yaml").write_text(yaml.safe_dump(data))


def write_faults(folder: Path) -> None:
    """Two scenarios: relay and helper killed; and one that begins as soon as `journal` is there, to lose node c."""
    data: dict[str, Any] = {
        "name": "faults",
        "deadline_ms": 8000,
        "modes": ["int4", "prompt", "local"],
        "allocators": ["deadline"],
        "lateness_limit_ms": 5000,
        "uplink": {"channel": {"kind": "constant", "mbps": 40}},
        "arrivals": {"kind": "poisson", "rate_per_s": 0.5, "duration_s": 10},
        "agents": {
            "groups": [
                {"profile": "measured/qwen2.5-14b", "count": 2, "node": "edge", "per_actor": 2},
                {"profile": "measured/qwen2.5-7b", "count": 2},
            ]
        },
        "cloud": {"workers": 2, "node": "any"},
        "cluster": {"nodes": {"edge": EDGE, "any": {"resources": {"CPU": 1}}}},
    }
    killed = [{"kind": "kill", "part": part, "at_s": at_s} for part, at_s in (("relay", 2), ("helper", 6))]
    (folder / "killed.yaml").write_text(yaml.safe_dump(data | {"events": killed}))
    data |= {"allocators": ["deadline", "equal"], "arrivals": data["arrivals"] | {"duration_s": 8}}
    (folder / "cut.yaml").write_text(yaml.safe_dump(data))


@pytest.fixture(scope="module")
def spread(shared: Path, shapes: bool) -> dict[str, Finished]:
    """All runs over one cluster, by the names of their scenarios; node c is cut off during the last one."""
    if not shapes:
        pytest.skip("no kernel shaping here; `scout doctor` says why")
    write_congestion(shared)
    write_faults(shared)
    names = ("spread", "killed", "cut")
    one = f'"{sys.executable}" -m cluster run "$0/{{name}}.yaml" --out "$0/{{name}}" >"$0/{{name}}.txt" 2>&1; echo $? '
    script = "; ".join(one.format(name=name) for name in names)
    # Ray itself forgets a lost node sooner, so that its actors are known to be gone before the next turn begins.
    sooner = {f"RAY_health_check_{key}": "2000" for key in ("period_ms", "timeout_ms")}
    sooner |= {"RAY_health_check_failure_threshold": "3"}
    cut_when = {"CUT_WHEN": str(shared / "cut" / "journal" / "deadline")}
    done = over_three_nodes("bash", "-c", script, shared, **sooner, **cut_when)
    codes = done.stdout.split()
    assert len(codes) == len(names), done.stdout + done.stderr
    said = {name: (shared / f"{name}.txt").read_text() for name in names}
    return {
        name: Finished(int(code), said[name], done.stderr, shared / name)
        for name, code in zip(names, codes, strict=True)
    }


def met(run: Finished) -> dict[str, int]:
    return {name: summary["met"] for name, summary in run.summary["allocators"].items()}


def test_over_three_nodes_it_is_what_it_is_on_one_machine(shared: Path, spread: dict[str, Finished]) -> None:
    three = spread["spread"]
    assert three.returncode == 0, three.stdout
    done = scout("run", shared / "alone.yaml", "--out", shared / "alone")
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
        "node-b": (0, 4),
        "node-c": (1, 0),
    }
    for node in nodes.values():
        assert node["clock_error_ms"] < 0.5, "of clocks that are a thousand seconds apart"
        assert node["up_mbps"] > 100 and node["down_mbps"] > 100 and node["round_trip_ms"] > 0 and not node["slow"]
    assert not [name for name in three.summary["relay"] if name.startswith("refused")]
    assert three.summary["relay"]["agents"] == 12 and one.summary["relay"] == {} and one.summary["nodes"] == []


def texts(run: Finished, allocator: str) -> list[str]:
    return [event["text"] for event in run.summary["events"] if event["allocator"] == allocator]


def test_relay_and_helper_are_started_again_within_the_turn(spread: dict[str, Finished]) -> None:
    run = spread["killed"]
    assert run.returncode == 0, run.stdout
    turn = run.summary["allocators"]["deadline"]
    assert turn["met"] == turn["scheduled"] > 10, "requests were sent again"
    found = texts(run, "deadline")
    assert sum("the station's relay is back" in text for text in found) == 2, "it ended with the helper's link, too"
    assert sum("the link's helper process is back" in text for text in found) == 1


def test_a_node_that_is_cut_off_costs_only_its_own_agents(spread: dict[str, Finished]) -> None:
    run = spread["cut"]
    rows = run.ledger
    scheduled = run.summary["allocators"]["deadline"]["scheduled"]
    assert len(rows) == 2 * scheduled and not rows.duplicated(["allocator", "request_id"]).any()
    assert any("(node-c) had not answered for 4 s and was ended" in text for text in texts(run, "deadline"))
    others = rows[rows.agent_id >= 2]
    assert (others.status == "met").all(), "the other worker serves them, in the turn and in the next one"
    own = rows[(rows.agent_id < 2) & (rows.status == "failed")]
    assert len(own) and own.reason.str.contains("the host of agent 0 died").all()
