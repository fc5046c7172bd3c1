"""Scenarios that ship load; wrong ones are refused in a line or two that name file, line, key and what is allowed."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.scenario.schema import AllocatorSettings, Scenario
from cluster.scenario.yaml_document import DocumentError
from kvcache.modes import parse_mode

CONFIGS = Path(__file__).parents[3] / "configs"

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


SHIPPED = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
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
    assert list(map(str, scenario.modes_of(scenario.models[0]))) == ["int8", "int4"]
    assert scenario.request_timeout_ms == 20_000
    assert scenario.agents_per_actor == 1
    assert scenario.uplink.estimator.kind == "ewma"
    assert len(scenario.schedule()) == 6
    assert load(tmp_path, GOOD, ["static_int8"]).allocators == [AllocatorSettings(policy="static_int8")]
    assert scenario.allocator_names == ["deadline"]
    assert (scenario.hedge, scenario.on_infeasible, scenario.planning_margin_ms) == (None, "local", 50.0)
    assert load(tmp_path, GOOD.replace("5000", "1000")).planning_margin_ms == 20.0
    assert scenario.agent_weights == [1.0, 1.0, 1.0]


def test_impairments_go_by_agent(tmp_path: Path) -> None:
    text = GOOD.replace("count: 2}", "count: 2, link: {up: {delay_ms: 20, loss: {percent: 1}}}}")
    scenario = load(tmp_path, text.replace("mbps: 50}", "mbps: 50}\n  shared: {down: {delay_ms: 5}}"))
    found = scenario.impairments
    assert [found.of(agent).up.delay_ms for agent in range(3)] == [20, 20, 0]
    assert found.shared.down.delay_ms == 5 and found.active
    assert not load(tmp_path, GOOD).impairments.active
    again = Scenario.model_validate(yaml.safe_load(yaml.safe_dump(scenario.resolved())), context={"base_dir": tmp_path})
    assert again.impairments == found


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
            "s.yaml:5: uplink.channel.kind: is missing; one of constant, steps, markov, ar1, cellular, trace",
        ),
        ("rounds: 2", "rounds: 0", "s.yaml:6: arrivals.rounds: 0: input should be greater than or equal to 1"),
        (
            "count: 2",
            "count: 2, gpu: 1",
            "s.yaml:9: agents.groups[0].gpu: unknown key; allowed here: count, deadline_ms, link, model",
        ),
        (
            "-14b",
            "-15b",
            "s.yaml:10: agents.groups[1].profile: no model 'qwen2.5-15b' in profile file 'measured'; there",
        ),
        (
            "measured/qwen2.5-14b",
            "ghost/x",
            "s.yaml:10: agents.groups[1].profile: no profile 'ghost/x'; there are family",
        ),
        ("5000", "300", "s.yaml:2: deadline_ms: 300 ms is shorter than the compute of measured/qwen2.5-14b alone: its"),
        ("int4]", "int5]", "s.yaml:3: modes[1]: no agent's profile has mode 'int5'; there are full, int4"),
        (
            "[int8, int4]",
            "[scout]",
            "agents.groups[1].profile: measured/qwen2.5-14b has none of the allowed modes, only full",
        ),
        (
            "count: 2",
            "count: 2, link: {up: {jitter_ms: 5}}",
            "s.yaml:9: agents.groups[0].link.up: jitter_ms 5 without a delay_ms as long: no packet can arrive before",
        ),
        (
            "count: 2",
            "count: 2, link: {down: {loss: {p: 1}}}",
            "s.yaml:9: agents.groups[0].link.down.loss: needs percent, or p and r (Gilbert-Elliott)",
        ),
        (
            "mbps: 50}",
            "mbps: 50}\n  shared: {up: {delay: 5}}",
            "s.yaml:6: uplink.shared.up.delay: unknown key; allowed here: correlation, delay_ms, distribution",
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
            "s.yaml:1: allocators[1]: allocator 'equal' is there twice; give one a `label`",
        ),
        (
            "name: small",
            "allocators: [static_full]\nname: small",
            "static_full: measured/qwen2.5-7b may not use 'full', only",
        ),
        ("channel: {kind: constant, mbps: 50}", "channel: {kind: trace, path: t.csv}", "s.yaml:5: uplink.channel: "),
        ("name: small", "name: [", "s.yaml:3: not YAML"),
        ("count: 2", "count: 100000", "s.yaml:8: agents.groups: 100001 agents in all; there may be 100000"),
        ("count: 2", "count: 100001", "s.yaml:9: agents.groups[0].count: 100001: input should be less than or equal"),
    ],
)
def test_wrong_input_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(DocumentError) as error:
        load(tmp_path, GOOD.replace(old, new, 1))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


ALLOCATORS = "name: small\nallocators:\n  - "


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: small", ALLOCATORS + "best", "s.yaml:3: allocators[0]: no allocator 'best'; there are equal, model_aw"),
        (
            "name: small",
            ALLOCATORS + "{policy: best, label: mine}",
            "s.yaml:3: allocators[0]: no allocator 'best'; there are equal, model_aware, deadline,",
        ),
        ("name: small", ALLOCATORS + "{label: mine}", "s.yaml:3: allocators[0].policy: is missing"),
        (
            "name: small",
            ALLOCATORS + "{policy: equal, hedges: true}",
            "s.yaml:3: allocators[0].hedges: unknown key; allowed here: cloud_time, estimator, hedge, label, modes,",
        ),
        (
            "name: small",
            ALLOCATORS + "{policy: equal, label: a/b}",
            "s.yaml:3: allocators[0].label: 'a/b': string should match pattern",
        ),
        (
            "name: small",
            ALLOCATORS + "{policy: equal, cloud_time: perhaps}",
            "s.yaml:3: allocators[0].cloud_time: 'perhaps': input should be a valid boolean",
        ),
        (
            "name: small",
            ALLOCATORS + "deadline\n  - equal\n  - {policy: deadline, cloud_time: false}",
            "s.yaml:5: allocators[2]: allocator 'deadline' is there twice; give one a `label`",
        ),
        (
            "name: small",
            ALLOCATORS + "{policy: equal, label: mine}\n  - {policy: deadline, label: mine}",
            "s.yaml:4: allocators[1]: allocator 'mine' is there twice; give one a `label`",
        ),
        (
            "name: small",
            ALLOCATORS + "{policy: deadline, modes: [prompt]}",
            "s.yaml:3: allocators[0]: deadline: measured/qwen2.5-7b has none of the allocator's modes, only int8, int4",
        ),
        ("name: small", ALLOCATORS + "{policy: deadline, modes: []}", "s.yaml:3: allocators[0].modes: []: list should"),
        (
            "name: small",
            ALLOCATORS + "{policy: static_int4, modes: [int8]}",
            "s.yaml:3: allocators[0]: static_int4: measured/qwen2.5-7b may not use 'int4', only int8",
        ),
        (
            "name: small",
            ALLOCATORS + "scout_only",
            "s.yaml:3: allocators[0]: scout_only: measured/qwen2.5-7b may not use 'scout', only int8, int4",
        ),
        (
            "name: small",
            ALLOCATORS + "{policy: equal, estimator: {kind: guess}}",
            "s.yaml:3: allocators[0].estimator.kind: 'guess' is not one of 'ewma', 'published_ewma', 'oracle', 'fixed'",
        ),
        (
            "name: small",
            ALLOCATORS + "{policy: equal, estimator: {kind: fixed, mbps: 0}}",
            "s.yaml:3: allocators[0].estimator.mbps: 0: input should be greater than 0",
        ),
        ("name: small", "name: small\nallocators: []", "s.yaml:2: allocators: []: list should have at least 1 item"),
        (
            "name: small",
            "name: small\nmargin_ms: 5000",
            "s.yaml:2: margin_ms: 5000 ms leaves nothing of the deadline of 5000 ms",
        ),
        ("name: small", "name: small\nmargin_ms: -1", "s.yaml:2: margin_ms: -1: input should be greater than or equal"),
        (
            "name: small",
            "name: small\non_infeasible: drop",
            "s.yaml:2: on_infeasible: 'drop': input should be 'local' or 'late'",
        ),
        ("name: small", "name: small\nhedge: maybe", "s.yaml:2: hedge: 'maybe': input should be a valid boolean"),
        ("count: 2", "count: 2, weight: 0", "s.yaml:9: agents.groups[0].weight: 0: input should be greater than 0"),
        ("count: 2", "count: 2, weight: -3", "s.yaml:9: agents.groups[0].weight: -3: input should be greater than 0"),
        (
            "{kind: synchronized, rounds: 2, period_s: 8}",
            "{kind: bursts, rate_per_s: 1, size: 0.5, duration_s: 9}",
            "s.yaml:6: arrivals.size: 0.5: input should be greater than or equal to 1",
        ),
        (
            "{kind: synchronized, rounds: 2, period_s: 8}",
            "{kind: bursts, rate_per_s: 1, duration_s: 9}",
            "s.yaml:6: arrivals.size: is missing",
        ),
        (
            "{kind: synchronized, rounds: 2, period_s: 8}",
            "{kind: bursts, rate_per_s: 0.001, size: 2, duration_s: 0.001}",
            "s.yaml:6: arrivals: no request arrives in this time; raise rate_per_s or duration_s",
        ),
    ],
)
def test_wrong_allocators_and_what_else_is_new_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    test_wrong_input_is_named(tmp_path, old, new, message)


VARIANTS = """\
allocators:
  - equal
  - {policy: deadline, label: blind, cloud_time: false}
  - {policy: deadline, hedge: true}
  - {policy: deadline, label: exact, modes: [int4], estimator: {kind: oracle}}
"""


def test_variants_of_one_policy_have_turns_of_their_own(tmp_path: Path) -> None:
    scenario = load(tmp_path, GOOD + VARIANTS)
    assert scenario.allocator_names == ["equal", "blind", "deadline+hedge", "exact"]
    equal, blind, hedging, exact = scenario.allocators
    assert equal == AllocatorSettings(policy="equal")
    assert (blind.cloud_time, hedging.cloud_time) == (False, True)
    assert (equal.hedge, hedging.hedge) == (None, True)
    assert exact.estimator is not None and exact.estimator.kind == "oracle" and exact.modes == [parse_mode("int4")]


def test_a_variant_is_picked_by_its_name_and_any_policy_by_its_own(tmp_path: Path) -> None:
    picked = load(tmp_path, GOOD + VARIANTS, ["exact", "deadline+hedge", "deadline", "equal"])
    assert picked.allocator_names == ["exact", "deadline+hedge", "deadline", "equal"]
    assert [a.policy for a in picked.allocators] == ["deadline", "deadline", "deadline", "equal"]
    assert picked.allocators[0].modes == [parse_mode("int4")] and picked.allocators[2] == AllocatorSettings(
        policy="deadline"
    )
    with pytest.raises(DocumentError, match="no allocator 'sharp'; there are equal"):
        load(tmp_path, GOOD + VARIANTS, ["sharp"])
    with pytest.raises(DocumentError, match="allocator 'blind' is there twice"):
        load(tmp_path, GOOD + VARIANTS, ["blind", "blind"])


def test_all_hedge_or_none_where_an_allocator_says_nothing(tmp_path: Path) -> None:
    scenario = load(
        tmp_path, "hedge: true\n" + GOOD + "allocators: [deadline, {policy: deadline, hedge: false, label: x}]"
    )
    assert scenario.hedge and [a.hedge for a in scenario.allocators] == [None, False]
    assert scenario.allocator_names == ["deadline", "x"]


def test_weights_are_every_agent_s_own(tmp_path: Path) -> None:
    scenario = load(tmp_path, GOOD.replace("count: 2", "count: 2, weight: 2.5"))
    assert scenario.agent_weights == [2.5, 2.5, 1.0]


def test_bursts_arrive(tmp_path: Path) -> None:
    arrivals = "{kind: bursts, rate_per_s: 1, size: 2, spread_s: 0.05, duration_s: 60}"
    scenario = load(tmp_path, GOOD.replace("{kind: synchronized, rounds: 2, period_s: 8}", arrivals))
    schedule = scenario.schedule()
    assert len(schedule) > 60 and {arrival.agent_id for arrival in schedule} == {0, 1, 2}


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
    from cluster.scenario.yaml_document import Document

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


estimators = st.sampled_from(
    [
        *({"kind": "ewma", "alpha": 0.5}, {"kind": "ewma", "safety": 0.7}, {"kind": "published_ewma"}),
        *({"kind": "oracle"}, {"kind": "fixed", "mbps": 12.5}),
    ]
)
allocators = st.sampled_from(["equal", "deadline", "static_int8"]) | st.fixed_dictionaries(
    {"policy": st.sampled_from(["equal", "model_aware", "deadline", "static_int4"])},
    optional={
        "label": st.from_regex(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,63}", fullmatch=True),
        "hedge": st.booleans(),
        "cloud_time": st.booleans(),
        "modes": st.lists(st.sampled_from(["int8", "int4", "full"]), min_size=1, max_size=3),
        "estimator": estimators,
    },
)
arrival_processes = st.sampled_from(
    [
        {"kind": "synchronized", "rounds": 2, "period_s": 8},
        {"kind": "poisson", "rate_per_s": 0.5, "duration_s": 60},
        {"kind": "bursts", "rate_per_s": 0.5, "size": 2.5, "duration_s": 60},
    ]
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "deadline_ms": st.floats(600, 3_600_000),
        "context": st.just("resident"),
        "allocators": st.lists(allocators, min_size=1, max_size=4),
        "hedge": st.booleans(),
        "on_infeasible": st.sampled_from(["local", "late"]),
        "margin_ms": st.none() | st.floats(0, 599),
        "timeout_ms": st.none() | st.floats(3_600_000, 86_400_000),
        "arrivals": arrival_processes,
        "cloud": st.fixed_dictionaries({}, optional={"workers": st.integers(1, 64), "num_gpus": st.floats(0, 1)}),
    },
)


@given(changes)
def test_a_resolved_scenario_is_the_same_scenario(changed: dict[str, object]) -> None:
    """What a run folder keeps is plain data, says everything, and loads as what it was."""
    scenario = Scenario.model_validate(yaml.safe_load(GOOD) | changed)
    resolved = scenario.resolved()
    assert set(resolved) == set(Scenario.model_fields) - {"base_dir"}, "every default is written out"
    again = Scenario.model_validate(yaml.safe_load(yaml.safe_dump(resolved)))
    assert again == scenario and again.resolved() == resolved
    assert again.allocator_names == scenario.allocator_names and again.schedule() == scenario.schedule()


def test_weights_that_optimal_can_t_tell_apart_are_refused_before_a_run(tmp_path: Path) -> None:
    apart = GOOD.replace("count: 2}", "count: 2, weight: 1e6}").replace("qwen2.5-14b}", "qwen2.5-14b, weight: 0.5}")
    with pytest.raises(DocumentError, match=r"optimal: a weight of 0\.5 among weights of 4e") as caught:
        load(tmp_path, apart, ["optimal"])
    assert "or use deadline" in str(caught.value)
    assert load(tmp_path, apart, ["deadline"]).agent_weights == [1e6, 1e6, 0.5]
