"""What has a name of its own is told from all others by it: in options, sizes, real models, tables and folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.experiments.compare import Sweep
from cluster.experiments.problem_file import load_problem
from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import DocumentError
from models.profiles import ProfileError, load_profile

PROFILE: dict[str, Any] = {
    "kv_bytes": 1000,
    "edge_prefill_ms": 10,
    "quality_basis": "x",
    "modes": {"full": {"payload_bytes": 1000, "decode_ms": 1, "quality": 90}},
}
SCENARIO: dict[str, Any] = {
    "name": "keys",
    "deadline_ms": 5000,
    "uplink": {"channel": {"kind": "constant", "mbps": 50}},
    "arrivals": {"kind": "synchronized", "rounds": 1, "period_s": 8},
}


def profile_file(path: Path, kv_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = PROFILE | {
        "kv_bytes": kv_bytes,
        "modes": {"full": {**PROFILE["modes"]["full"], "payload_bytes": kv_bytes}},
    }
    path.write_text(yaml.safe_dump({"qwen2.5-7b": profile, "m": profile}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("measured/qwen2.5-7b", "measured.yaml/qwen2.5-7b"),
        ("measured/qwen2.5-7b", "measured.yml/qwen2.5-7b"),
        ("measured.yaml/m", "measured.yml/m"),
        ("one/p.yaml/m", "two/p.yaml/m"),
        ("one/p.yaml/m", "one/p.yml/m"),
        ("p.yaml/m", "one/p.yaml/m"),
        ("p.yaml/m", "p.yaml.yaml/m"),
        ("p.yaml/m", "p.x.yaml/m"),
        ("./one/p.yaml/m", "two/../two/p.yaml/m"),
        ("p.yaml/m", "P.yaml/m"),
        ("paper_b/qwen2.5-7b", "one/paper_b.yaml/qwen2.5-7b"),
        ("journal/qwen2.5-7b", "./journal.yaml/qwen2.5-7b"),
    ],
)
def test_two_profiles_have_two_keys(tmp_path: Path, one: str, other: str) -> None:
    shipped = {"measured/qwen2.5-7b", "paper_b/qwen2.5-7b", "journal/qwen2.5-7b"}
    for number, name in enumerate((one, other), start=1):
        if name not in shipped:
            profile_file(tmp_path / name.rpartition("/")[0], 1000 * number)
    document = SCENARIO | {"agents": {"groups": [{"profile": one}, {"profile": other}]}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(document))
    scenario = Scenario.load(tmp_path / "s.yaml")
    first, second = scenario.agent_profiles
    assert first.kv_bytes != second.kv_bytes and (first.name, second.name) == (one, other)
    assert len(scenario.options) == len(scenario.models) == 2
    full, other_full = (next(o for o in scenario.options[p.name] if str(o.mode) == "full") for p in (first, second))
    assert full.wire_bytes != other_full.wire_bytes


def test_a_profile_has_no_other_name_than_its_key(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"m": PROFILE | {"name": "measured/qwen2.5-7b"}}))
    with pytest.raises(ProfileError, match=r"p\.yaml:\d+: m\.name: a model is named by its key alone"):
        load_profile("p.yaml/m", tmp_path)


AGENT = {"modes": {"int4": {"payload_bytes": 5, "quality": 1}}}


@pytest.mark.parametrize(
    ("names", "second"),
    [
        ([None, None, "1"], 2),
        (["1", None], 1),
        ([None, "0"], 1),
        (["a", "a"], 1),
        (["a", "a "], 1),
        ([" 1", None], 1),
        ([None, " 0 "], 1),
        (["\u00e9", "e\u0301"], 1),
        (["2", None, None], 2),
        (["3", "2", None], 2),
        ([None, None, None, "2"], 3),
    ],
)
def test_two_agents_are_not_shown_alike(tmp_path: Path, names: list[str | None], second: int) -> None:
    agents = [AGENT | ({} if name is None else {"name": name}) for name in names]
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"uplink_mbps": 50, "deadline_ms": 5000, "agents": agents}))
    with pytest.raises(DocumentError, match=rf"agents\[{second}\]\.name: agent \d has this name already"):
        load_problem(path)


@pytest.mark.parametrize("names", [["1", "2"], [None, None], ["0", None], [None, "2"], ["01", None], ["a", "A", "á"]])
def test_other_names_are_fine(tmp_path: Path, names: list[str | None]) -> None:
    agents = [AGENT | ({} if name is None else {"name": name}) for name in names]
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"uplink_mbps": 50, "deadline_ms": 5000, "agents": agents}))
    assert len(set(map(str, load_problem(path).names))) == len(names)


@pytest.mark.parametrize("label", ["..", ".", ".hidden", "a/b", "", "a b", "\n", "ä", "x" * 65, "../a"])
def test_labels_are_names_of_folders(tmp_path: Path, label: str) -> None:
    document = SCENARIO | {
        "agents": {"groups": [{"profile": "measured/qwen2.5-7b"}]},
        "allocators": [{"policy": "equal", "label": label}],
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(DocumentError, match=r"allocators\[0\]\.label"):
        Scenario.load(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    "values", ["50,50", "50,50.0", "5.0e+1,50", "1,2,1", "a,a", "true,true", "[1],50,[1]", "a,b,'a'"]
)
def test_a_sweep_has_each_value_once(values: str) -> None:
    with pytest.raises(DocumentError, match=r"is there twice|are not values"):
        Sweep.parse(f"uplink.channel.mbps={values}")
