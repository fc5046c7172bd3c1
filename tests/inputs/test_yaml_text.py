"""YAML means what its writer thinks that it means, or is refused with its line; and it is never secretly large."""

import time
from pathlib import Path

import pytest

from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import DocumentError
from configs.yaml_text import YamlRefused, YamlText, load_yaml
from models.profiles import ProfileError, load_profile

GOOD = """\
name: small
seed: 3
hedge: yes
deadline_ms: 5000
uplink:
  channel: {kind: constant, mbps: 50}
arrivals: {kind: synchronized, rounds: 2, period_s: 8}
agents: {groups: [{profile: measured/qwen2.5-7b, count: 2}]}
"""


@pytest.mark.parametrize(
    ("good", "wrong", "message"),
    [
        ("mbps: 50", "mbps: yes", ":6: uplink.channel.mbps: .*true .*valid number"),
        ("mbps: 50", "mbps: on", ":6: uplink.channel.mbps: .*true .*valid number"),
        ("seed: 3", "seed: yes", ":2: seed: .*true .*valid integer"),
        ("seed: 3", "seed: no", ":2: seed: .*false .*valid integer"),
        ("count: 2", "count: true", r":8: agents.groups\[0\].count: .*true"),
        ("deadline_ms: 5000", "deadline_ms: True", ":4: deadline_ms: .*true"),
        ("period_s: 8", "period_s: y, rounds: On", "rounds.* twice"),
        ("period_s: 8", "period_s: ON", ":7: arrivals.period_s: .*true"),
        ("kind: constant, mbps: 50", "kind: steps, steps: [[0, yes]]", ":6: uplink.channel.steps"),
        ("seed: 3", "seed: 010", ":2: .*octal"),
        ("period_s: 8", "period_s: 1:30", ":7: .*base of 60"),
        ("period_s: 8", "period_s: 1:30.5", ":7: .*base of 60"),
        ("seed: 3", "seed: 3\nseed: 4", ":3: seed: is there twice"),
        ("mbps: 50", "mbps: 50, mbps: 60", ":6: uplink.channel.mbps: is there twice"),
        ("seed: 3", "seed: " + "1" * 5000, ":2: .*5,000 digits"),
        ("name: small", 'name: small\ndescription: "\\ud800"', ":2: "),
        ("name: small", "name: no", ":1: name: "),
        ("name: small", "? [a]\n: b", ":1: .*a key must be a text"),
        ("period_s: 8", "period_s: .inf", "arrivals.period_s"),
        ("seed: 3", "events: [{kind: kill, part: worker, between: [5]}]", r":2: events\[0\].between\[1\]: is missing"),
        ("seed: 3", "seed: !!int ''", ":2: .*no value of the tag !!int"),
        ("hedge: yes", "hedge: !!bool 7", ":3: .*no value of the tag !!bool"),
        ("seed: 3", "seed: !!timestamp 3", ":2: .*no value of the tag !!timestamp"),
    ],
)
def test_nothing_counts_silently(tmp_path: Path, good: str, wrong: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(GOOD.replace(good, wrong))
    with pytest.raises(DocumentError, match=message):
        Scenario.load(tmp_path / "s.yaml")


def test_yes_stays_yes_where_it_answers_a_question(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(GOOD)
    assert Scenario.load(tmp_path / "s.yaml").hedge is True


ENTRY = "{payload_bytes: 5, decode_ms: 1, quality: 1}"


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        (f"{{full: {ENTRY}, full: {ENTRY}}}", r"p\.yaml:1: m\.modes\.full: is there twice"),
        (f'{{full: {ENTRY}, "full": {ENTRY}}}', "is there twice"),
        (f"{{int8: {ENTRY}, full: {ENTRY}, int8: {ENTRY}}}", r"m\.modes\.int8: is there twice"),
        (f"{{q2c@0.5+int8: {ENTRY}, q2c@0.50+int8: {ENTRY}}}", "are the same mode"),
        (f"{{scout@0.5: {ENTRY}, scout@.5: {ENTRY}}}", "are the same mode|no mode"),
        (f"{{full: {ENTRY.replace('decode_ms: 1', 'decode_ms: yes')}}}", r"m\.modes\.full\.decode_ms"),
        (f"{{full: {ENTRY.replace('quality: 1', 'quality: on')}}}", r"m\.modes\.full\.quality"),
        (f"{{full: {ENTRY.replace('payload_bytes: 5', 'payload_bytes: true')}}}", r"m\.modes\.full\.payload_bytes"),
        (f"{{full: {ENTRY.replace('quality: 1', 'quality: 1, quality: 2')}}}", r"m\.modes\.full\.quality: is there"),
        (f"{{full: {ENTRY.replace('quality: 1', 'quality: 010')}}}", "octal"),
    ],
)
def test_profiles_as_well(tmp_path: Path, modes: str, message: str) -> None:
    text = f"m: {{kv_bytes: 1, edge_prefill_ms: 1, quality_basis: x, modes: {modes}}}"
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ProfileError, match=message):
        load_profile("p.yaml/m", tmp_path)


def merges(levels: int) -> str:
    lines = [f"b{n}: &L{n} {{<<: [*L{n - 1}, *L{n - 1}]}}" for n in range(1, levels)]
    return "\n".join(["b0: &L0 {k: v}", *lines])


LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))])
MANY = (
    "a: &a {"
    + ", ".join(f"k{n}: 1" for n in range(20_000))
    + "}\n"
    + "\n".join(f"m{n}: {{<<: *a}}" for n in range(999))
)


@pytest.mark.parametrize(
    "text",
    [
        merges(27),
        merges(60),
        LAUGHS,
        MANY,
        "[" * 100_000,
        "{a: " * 100_000,
        "- " * 50_000,
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: &a\n  <<: *a",
        "a: [" + "1, " * 300_000 + "]",
        "\n".join(" " * n + "a:" for n in range(500)),
        "{" * 3000 + "}" * 3000,
    ],
    ids=range(13),
)
def test_documents_are_bounded(text: str) -> None:
    begun_s = time.process_time()
    with pytest.raises(YamlRefused, match="more than 200,000 values, or more than 50 levels deep"):
        YamlText(text)
    assert time.process_time() - begun_s < 30, "which is a minute and more where a bound is missing"


def test_merge_keys_of_a_sensible_size_are_read() -> None:
    assert load_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}
    assert load_yaml(merges(10))["b9"] == {"k": "v"}
