"""An allocation problem from a file: answers, infeasible ones too, and one line for every mistake."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.experiments.one_problem import allocate
from cluster.experiments.problem_file import load_problem
from cluster.scenario.yaml_document import DocumentError
from tests.support.commands import REPOSITORY, scout

EXAMPLE = REPOSITORY / "configs" / "problems" / "eight-agents.json"
INT4 = {"payload_bytes": 2_500_000, "edge_ms": 20, "cloud_ms": 80, "quality": 96}  # 20 Mbit, 100 ms of compute
TINY = {"payload_bytes": 25_000, "edge_ms": 20, "cloud_ms": 80, "quality": 50}


def problem(**changes: Any) -> dict[str, Any]:
    return {"uplink_mbps": 20, "deadline_ms": 2100, "agents": [{"modes": {"int4": INT4}}]} | changes


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(content: Any) -> Path:
        path = tmp_path / "problem.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
        return path

    return write


def test_the_example_is_the_published_problem_that_random_search_missed() -> None:
    done = scout("allocate", str(EXAMPLE), "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["policy"] == "deadline" and answer["uplink_mbps"] == 100
    assert answer["deadlines_met"] == 8 and answer["unserved"] == []
    assert answer["delivered_quality"] == answer["credited_quality"] == pytest.approx(812.5)
    assert [row["agent"] for row in answer["assignments"]] == list(range(8))
    assert sum(row["mbps"] for row in answer["assignments"]) <= 100 + 1e-6
    assert all(row["latency_ms"] <= 5000 + 1e-3 and row["meets_deadline"] for row in answer["assignments"])
    first = answer["assignments"][0]
    assert set(first) == {"agent", "mode", "mbps", "latency_ms", "meets_deadline", "quality", "why_late"}


def test_what_the_published_allocators_reach_on_it() -> None:
    named = load_problem(EXAMPLE)
    equal = allocate(named, "equal")
    assert equal["deadlines_met"] == 6 and equal["unserved"] == [2, 5]
    assert equal["credited_quality"] == pytest.approx(800.6) and equal["delivered_quality"] == pytest.approx(609.6)
    assert "more than its share of 12.5" in equal["assignments"][2]["why_late"]
    assert allocate(named, "model_aware")["delivered_quality"] == pytest.approx(800.8)


def test_payload_bytes_and_stage_times_of_a_profile_are_taken_as_they_are(write: Any) -> None:
    named = load_problem(write(problem(agents=[{"profile": "paper_b/qwen2.5-7b", "modes": ["int4", "local"]}])))
    int4, local = named.problem.requests[0].options
    assert (str(int4.mode), int4.wire_bytes, int4.edge_ms, int4.cloud_ms) == ("int4", 2_325_000, 18 + 3, 167)
    assert (str(local.mode), local.wire_bytes, local.edge_ms, local.cloud_ms) == ("local", 0, 18 + 167, 0)
    assert named.problem.agents[0].kv_bytes == 9_300_000
    assert named.problem.workers_free_s is None


def test_what_an_agent_says_stands_instead_of_what_the_problem_says(write: Any) -> None:
    agents = [
        {"profile": "paper_b/qwen2.5-7b"},
        {"profile": "paper_b/qwen2.5-7b", "modes": ["scout"], "deadline_ms": 500, "weight": 3, "name": "camera"},
        {"modes": {"small": TINY}, "kv_bytes": 77},
    ]
    named = load_problem(write(problem(agents=agents, modes=["int8", "int4"], cloud_slots=2)))
    offered = [[str(option.mode) for option in request.options] for request in named.problem.requests]
    assert offered == [["int8", "int4"], ["scout"], ["small"]]
    assert [request.due_s for request in named.problem.requests] == [2.1, 0.5, 2.1]
    assert [request.weight for request in named.problem.requests] == [1, 3, 1]
    assert list(named.names) == [0, "camera", 2]
    assert named.problem.agents[2].kv_bytes == 77
    assert named.problem.workers_free_s == (0, 0)


@pytest.mark.parametrize(
    ("changes", "policy", "unserved", "why"),
    [
        ({"uplink_mbps": 9}, "deadline", [0], "even int4 alone needs 10.0 Mbit/s of the 9"),
        ({"deadline_ms": 90}, "deadline", [0], "even int4 computes for 100 ms of the 90, before any transfer"),
        (
            {
                "agents": [{"modes": {"int4": INT4}, "weight": 9}, {"name": "b", "modes": {"int4": INT4}}],
                "uplink_mbps": 15,
            },
            "deadline",
            ["b"],
            "even int4 needs 10.0 Mbit/s, more than the 5.0 that is left",
        ),
        (
            {"agents": [{"modes": {"int4": INT4}}] * 2 + [{"modes": {"tiny": TINY}}], "uplink_mbps": 24},
            "equal",
            [0, 1],
            "even int4 needs 10.0 Mbit/s, more than its share of 8.0",
        ),
        (
            {"agents": [{"modes": {"int4": INT4, "tiny": TINY}}], "uplink_mbps": 1},
            "static_int4",
            [0],
            "int4 takes too long on its share of 1.0 Mbit/s",
        ),
        (
            {
                "agents": [{"modes": {"tiny": TINY}}, {"modes": {"tiny": TINY}, "weight": 9}],
                "deadline_ms": 150,
                "cloud_slots": 1,
                "uplink_mbps": 1000,
            },
            "deadline",
            [0],
            "no cloud worker has the time for it within 150 ms",
        ),
    ],
)
def test_an_infeasible_problem_is_a_normal_answer_that_says_who_and_why(
    write: Any, changes: dict[str, Any], policy: str, unserved: list[int | str], why: str
) -> None:
    path = write(problem(**changes))
    answer = allocate(load_problem(path), policy)
    assert answer["unserved"] == unserved
    assert answer["deadlines_met"] == len(answer["assignments"]) - len(unserved)
    reasons = {row["agent"]: row["why_late"] for row in answer["assignments"]}
    assert all(reasons[agent] == why for agent in unserved)
    assert all(reasons[agent] is None for agent in reasons if agent not in unserved)
    done = CliRunner().invoke(app, ["allocate", str(path), "--policy", policy])
    assert done.exit_code == 0, done.output
    who = f"agents {', '.join(map(str, unserved))}" if len(unserved) > 1 else f"agent {unserved[0]}"
    assert f"Not in time: {who}: {why}." in done.output


def test_a_policy_that_ignores_the_cloud_is_found_out(write: Any) -> None:
    path = write(problem(agents=[{"modes": {"tiny": TINY}}] * 4, deadline_ms=200, cloud_slots=1, uplink_mbps=1000))
    assert allocate(load_problem(path), "deadline")["cloud_time_suffices"]
    assert not allocate(load_problem(path), "equal")["cloud_time_suffices"]
    assert (
        "no time for all that it promises" in CliRunner().invoke(app, ["allocate", str(path), "--policy=equal"]).output
    )


AGENT = {"modes": {"int4": INT4}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", ":1: not JSON: "),
        ("[1, 2]", "must be an object"),
        ('{"uplink_mbps": 1, "uplink_mbps": 2}', "the key 'uplink_mbps' is twice in one object"),
        ('{"uplink_mbps": NaN}', "NaN is not a number"),
        ("[" * 100_000, "not JSON"),
        ('{"uplink_mbps": ' + "9" * 5000 + "}", "not JSON"),
        (problem(uplink_mbps=0), ":2: uplink_mbps: 0: input should be greater than or equal to 0.01"),
        (problem(uplink_mbps=-5), ":2: uplink_mbps: -5: input should be greater"),
        (problem(uplink_mbps="50"), ":2: uplink_mbps: '50': input should be a valid number"),
        (problem(uplink_mbps=10**400), ":2: uplink_mbps: "),
        ('{"uplink_mbps": 1e999, "deadline_ms": 1, "agents": [{"profile": "x"}]}', ":1: uplink_mbps: inf"),
        (problem(deadline_ms=None), ":3: deadline_ms: null: input should be a valid number"),
        (problem(cloud_slots=0), "cloud_slots: 0: input should be greater"),
        (problem(cloud_slots=1.5), "cloud_slots: 1.5: input should be a valid integer"),
        (problem(speed=3), "speed: unknown key; allowed here: agents, cloud_slots, deadline_ms, modes, uplink_mbps"),
        ({"deadline_ms": 5, "agents": [AGENT]}, ":1: uplink_mbps: is missing"),
        (problem(agents=[]), ":4: agents: []: list should have at least 1 item"),
        (problem(agents=[{}]), ":5: agents[0]: needs a profile"),
        (problem(agents=[{"modes": ["int4"]}]), "agents[0]: needs a profile"),
        (problem(agents=[AGENT | {"profile": "paper_b/qwen2.5-7b"}]), "has a profile and modes of its own"),
        (
            problem(agents=[{"profile": "nowhere/x"}]),
            ":6: agents[0].profile: no profile 'nowhere/x'; there are family/",
        ),
        (
            problem(agents=[{"profile": "paper_b/gpt"}]),
            "no model 'gpt' in profile file 'paper_b'; there are qwen2.5-7b",
        ),
        (
            problem(agents=[{"profile": "paper_b/qwen2.5-7b", "modes": ["int9"]}]),
            "agents[0].modes: paper_b/qwen2.5-7b has no mode 'int9'; it has full, int8",
        ),
        (
            problem(agents=[{"profile": "paper_b/mistral-7b-v0.3"}], modes=["q2c75_int8"]),
            "paper_b/mistral-7b-v0.3 has none of the allowed modes, only full",
        ),
        (
            problem(agents=[{"profile": "paper_b/qwen2.5-7b"}], modes=["int4", "int9"]),
            "modes[1]: no agent's profile has mode 'int9'; there are full",
        ),
        (
            problem(agents=[AGENT, AGENT | {"wieght": 2}]),
            "agents[1].wieght: unknown key; allowed here: deadline_ms, kv_",
        ),
        (problem(agents=[{"profile": "\0.yaml/x"}]), "agents[0].profile: '\\x00.yaml/x' has characters"),
        (problem(agents=[AGENT | {"weight": 0}]), "agents[0].weight: 0: input should be greater than 0"),
        (problem(agents=[AGENT | {"name": "a"}] * 2), "agents[1].name: agent 0 has this name already"),
        (problem(agents=[AGENT | {"name": "\u001b[31m"}]), "agents[0].name: "),
        (
            problem(agents=[{"modes": {"int4": INT4 | {"quality": -1}}}]),
            "agents[0].modes.int4.quality: -1: input should",
        ),
        (problem(agents=[{"modes": {"int4": {"payload_bytes": 5}}}]), ":7: agents[0].modes.int4.quality: is missing"),
        (
            problem(agents=[{"modes": {"int4": INT4 | {"bytes": 5}}}]),
            "modes.int4.bytes: unknown key; allowed here: cloud_ms",
        ),
        (problem(agents=[{"modes": {"": INT4}}]), "agents[0].modes.: no mode ''; there are full"),
        (problem(agents=[{"modes": {"int4": INT4 | {"payload_bytes": 0}}}]), "only `local` has 0"),
        (problem(agents=[{"modes": "int4"}]), "agents[0].modes: 'int4': input should be a valid list"),
        (problem(agents={"0": AGENT}), "agents: "),
    ],
)
def test_nonsense_is_one_line_that_says_where(write: Any, content: Any, message: str) -> None:
    done = CliRunner().invoke(app, ["allocate", str(write(content))])
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert message in done.stderr and "problem.json" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"gone\.json: No such file"):
        load_problem(tmp_path / "gone.json")
    with pytest.raises(DocumentError, match="is a folder"):
        load_problem(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DocumentError, match="not a text file"):
        load_problem(tmp_path / "binary")
    os.truncate(tmp_path / "binary", 17 * 2**20)
    with pytest.raises(DocumentError, match="larger than 16 MiB"):
        load_problem(tmp_path / "binary")


@pytest.mark.parametrize("policy", ["best", "static_int9"])
def test_wrong_policies_are_one_line(policy: str) -> None:
    done = CliRunner().invoke(app, ["allocate", str(EXAMPLE), "--policy", policy])
    assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 1
    assert policy.removeprefix("static_") in done.stderr


def test_ten_thousand_agents_are_read_at_once(write: Any) -> None:
    agents = [{"profile": "paper_b/qwen2.5-7b"}, {"modes": {"int4": INT4}}] * 5000
    named = load_problem(write(problem(agents=agents)))
    assert len(named.problem.requests) == 10_000


names = st.one_of(st.text(max_size=5), st.sampled_from(["int4", "own", "allowed", "modes", "profile"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats() | names | st.just("paper_b/qwen2.5-7b"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
own_modes = st.dictionaries(names, st.just(INT4) | st.just(TINY) | values, max_size=2)
nearly_agents = st.fixed_dictionaries(
    {},
    optional={
        "name": values,
        "profile": st.just("paper_b/qwen2.5-7b") | values,
        "modes": own_modes | st.lists(names, max_size=2) | values,
        "weight": st.just(1) | values,
        "deadline_ms": st.just(100) | values,
        "kv_bytes": values,
    },
)
nearly_problems = st.fixed_dictionaries(
    {"uplink_mbps": st.just(5) | values, "deadline_ms": st.just(900) | values},
    optional={
        "agents": st.lists(nearly_agents, max_size=3) | values,
        "modes": st.lists(names, max_size=2),
        "cloud_slots": st.just(1) | values,
        "surprise": values,
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(nearly_problems)
def test_any_document_is_a_problem_or_one_printable_line(tmp_path: Path, document: dict[str, Any]) -> None:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(document, indent=1))
    try:
        answer = allocate(load_problem(path), "model_aware")
    except DocumentError as error:
        message = str(error)
        assert message.startswith(f"{path}:") and message.isprintable()
    else:
        assert len(answer["assignments"]) == len(document["agents"])
        json.dumps(answer, allow_nan=False)
