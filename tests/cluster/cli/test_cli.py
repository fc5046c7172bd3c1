"""A user's mistakes at the command line: a line or two, exit code 2, no traceback, before anything is started."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from allocator.policies import policy_names
from tests.support.commands import scout

Write = Callable[..., Path]
UPLINK = {"channel": {"kind": "constant", "mbps": 10}}


def refused(*arguments: str) -> str:
    done = scout(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed": 9}, "speed: unknown key; allowed here: agents, allocators, arrivals,"),
        ({"uplink": {"channel": {"kind": "constant", "mbps": -1}}}, "uplink.channel.mbps: -1: input should be greater"),
        ({"agents": {"groups": [{"profile": "nowhere/x"}]}}, "no profile 'nowhere/x'; there are family/tiny"),
        ({"uplink": {"channel": {"kind": "trace", "path": "t.csv"}}}, "t.csv:3: '1;5' is not 't_s,mbps'"),
        ({"deadline_ms": 20}, "20 ms is shorter than the compute of tiny-profiles.yaml/"),
        (
            {"agents": {"groups": [{"profile": "tiny-profiles.yaml/small"}], "num_gpus": 1.5}},
            "agents.num_gpus: 1.5 can't",
        ),
        ({"agents": {"groups": [{"profile": "tiny-profiles.yaml/small"}], "num_cpus": 512}}, "512"),
    ],
)
def test_wrong_scenarios(scenario: Write, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "t.csv").write_text("t_s,mbps\n0,1\n1;5\n")
    assert message in refused("run", str(scenario(**changes)), "--json", "--out", str(tmp_path / "out"))


def test_other_mistakes(scenario: Write, tmp_path: Path) -> None:
    path = str(scenario())
    assert "gone.yaml: No such file" in refused("run", "gone.yaml")
    unknown = refused("run", path, "--allocators", "best")
    assert f"no allocator 'best'; there are {policy_names()}" in unknown
    assert "is not empty" in refused("run", path, "--out", str(tmp_path))
    assert "is not a run folder" in refused("recover", str(tmp_path))
    assert "is `ray start --head` running" in refused(
        "run", path, "--address", "127.0.0.1:1", "--out", str(tmp_path / "o")
    )
    assert not (tmp_path / "o").exists(), "a refused run leaves no folder in the way of the next try"


def test_the_doctor_reports_without_failing() -> None:
    done = scout("doctor", "--json")
    assert done.returncode == 0, done.stderr
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert {"python", "ray", "gpu", "netem", "HTB", "link"} <= set(findings)
    assert all(finding["available"] or finding["remedy"] for finding in findings.values())
