"""Scenarios that ship load; wrong ones are refused in a line or two that name file, line, key and what is allowed."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.documents import DocumentError
from cluster.scenario import Scenario

CONFIGS = Path(__file__).parents[2] / "configs"

GOOD = """\
name: small
deadline_ms: 5000
modes: [int8, int4]
uplink:
  channel: {kind: constant, mbps: 50}
arrivals: {kind: synchronized, rounds: 2, period_s: 8}
agents:
  groups:
    - {profile: measured/qwen2.5-7b, count: 2}
    - {profile: measured/qwen2.5-14b}
"""


def load(tmp_path: Path, text: str, allocators: list[str] | None = None) -> Scenario:
    (tmp_path / "s.yaml").write_text(text)
    return Scenario.load(tmp_path / "s.yaml", allocators)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_scenario_that_ships_loads_and_is_plain_data(path: Path) -> None:
    scenario = Scenario.load(path)
    assert scenario.name == path.stem
    again = Scenario.model_validate(yaml.safe_load(yaml.safe_dump(scenario.resolved())))
    assert again.schedule() == scenario.schedule()


def test_defaults_and_derived(tmp_path: Path) -> None:
    scenario = load(tmp_path, GOOD)
    assert [profile.name for profile in scenario.agent_profiles] == ["measured/qwen2.5-7b"] * 2 + [
        "measured/qwen2.5-14b"
    ]
    assert [profile.name for profile in scenario.models] == ["measured/qwen2.5-7b", "measured/qwen2.5-14b"]
    assert scenario.modes_of(scenario.models[0]) == ["int8", "int4"]
    assert scenario.request_timeout_ms == 20_000
    assert scenario.agents_per_actor == 1
    assert scenario.uplink.estimator.kind == "ewma"
    assert len(scenario.schedule()) == 6
    assert load(tmp_path, GOOD, ["static_int8"]).allocators == ["static_int8"]


@pytest.mark.parametrize(("agents", "actors"), [(1, 1), (8, 8), (9, 3), (64, 4), (1000, 4)])
def test_one_actor_each_up_to_a_handful(tmp_path: Path, agents: int, actors: int) -> None:
    scenario = load(
        tmp_path, GOOD.replace("count: 2", f"count: {agents}").replace("    - {profile: measured/qwen2.5-14b}", "")
    )
    assert -(-agents // scenario.agents_per_actor) == actors


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("deadline_ms:", "deadlin_ms:", "s.yaml:2: deadlin_ms: unknown key; allowed here: agents, allocators,"),
        ("deadline_ms: 5000\n", "", "s.yaml: deadline_ms: is missing"),
        ("mbps: 50", "mbps: -5", "s.yaml:5: uplink.channel.mbps: -5: input should be greater than or equal to 0.01"),
        ("mbps: 50", "mbps: fast", "s.yaml:5: uplink.channel.mbps: 'fast': input should be a valid number"),
        ("mbps: 50", "mbps: 50, loss: 1", "s.yaml:5: uplink.channel.loss: unknown key; allowed here: kind, mbps"),
        ("kind: constant", "kind: konstant", "uplink.channel.kind: 'konstant' is not one of 'constant', 'steps'"),
        (
            "kind: constant, ",
            "",
            "s.yaml:5: uplink.channel.kind: is missing; one of constant, steps, markov, ar1, trace",
        ),
        ("rounds: 2", "rounds: 0", "s.yaml:6: arrivals.rounds: 0: input should be greater than or equal to 1"),
        ("count: 2", "count: 2, gpu: 1", "s.yaml:9: agents.groups[0].gpu: unknown key; allowed here: count, profile"),
        (
            "-14b",
            "-15b",
            "s.yaml:10: agents.groups[1].profile: no model 'qwen2.5-15b' in profile file 'measured'; there",
        ),
        (
            "measured/qwen2.5-14b",
            "ghost/x",
            "s.yaml:10: agents.groups[1].profile: no profile 'ghost/x'; there are journal",
        ),
        ("5000", "300", "s.yaml:2: deadline_ms: 300 ms is shorter than the compute of measured/qwen2.5-14b alone: its"),
        ("int4]", "int5]", "s.yaml:3: modes[1]: no agent's profile has mode 'int5'; there are full, int4"),
        (
            "[int8, int4]",
            "[scout]",
            "agents.groups[1].profile: measured/qwen2.5-14b has none of the allowed modes, only full",
        ),
        ("name: small", "name: small\nname: again", "s.yaml:2: name: is there twice"),
        ("name: small", "name: 'a/b'", "s.yaml:1: name: 'a/b': string should match pattern"),
        (
            "agents:\n",
            "agents:\n  num_gpus: 1.5\n",
            "s.yaml:8: agents.num_gpus: 1.5 can't be had from Ray: a fraction is",
        ),
        (
            "agents:\n",
            "agents:\n  num_gpus: -1\n",
            "s.yaml:8: agents.num_gpus: -1: input should be greater than or equal to 0",
        ),
        (
            "name: small",
            "name: small\ntimeout_ms: 10",
            "s.yaml:2: timeout_ms: 10 ms is shorter than the deadline of 5000",
        ),
        (
            "name: small",
            "name: small\nallocators: [equal, best]",
            "s.yaml:2: allocators[1]: no allocator 'best'; there are",
        ),
        (
            "name: small",
            "allocators: [equal, equal]\nname: small",
            "s.yaml:1: allocators[1]: allocator 'equal' is named twice",
        ),
        (
            "name: small",
            "allocators: [static_full]\nname: small",
            "static_full: measured/qwen2.5-7b may not use 'full', only",
        ),
        ("channel: {kind: constant, mbps: 50}", "channel: {kind: trace, path: t.csv}", "s.yaml:5: uplink.channel: "),
        ("name: small", "name: [", "s.yaml:3: not YAML"),
        ("count: 2", "count: 1024", "s.yaml:8: agents.groups: 1025 agents in all; a link has room for 1024"),
    ],
)
def test_wrong_input_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(DocumentError) as error:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


def test_an_unreadable_trace_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("t_s,mbps\n0,50\n1,fifty\n")
    text = GOOD.replace("channel: {kind: constant, mbps: 50}", "channel: {kind: trace, path: t.csv}")
    with pytest.raises(DocumentError, match=r"s\.yaml:5: uplink\.channel: .*t\.csv:3: '1,fifty' is not 't_s,mbps'"):
        load(tmp_path, text)


BILLION_LAUGHS = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize("text", ["x: 2024-13-45", "x: &a [*a]", BILLION_LAUGHS])
def test_what_yaml_itself_stumbles_over_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DocumentError, match=r"s\.yaml"):
        load(tmp_path, text)


@pytest.mark.parametrize("text", ["", "- 1", "just words"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DocumentError, match="must be a mapping"):
        load(tmp_path, text)


def test_no_such_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"gone\.yaml: No such file"):
        Scenario.load(tmp_path / "gone.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\x00")
    with pytest.raises(DocumentError, match="not a text file"):
        Scenario.load(tmp_path / "b.yaml")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
paths = st.sampled_from(
    [
        *(("name",), ("uplink",), ("uplink", "channel"), ("uplink", "channel", "kind"), ("arrivals",), ("agents",)),
        *(("agents", "groups"), ("modes",), ("deadline_ms",), ("cloud",), ("uplink", "estimator"), ("seed",)),
    ]
)


@given(paths, json_values)
def test_no_value_anywhere_ends_in_a_traceback(path: tuple[str, ...], value: object) -> None:
    from cluster.documents import Document

    data = yaml.safe_load(GOOD)
    at = data
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    document = Document(Path("s.yaml"), yaml.safe_dump(data))
    try:
        Scenario.from_document(document)
    except DocumentError as error:
        assert str(error).startswith("s.yaml")
