"""Profiles that ship are whole and exact; broken ones are refused with what is wrong."""

import math
from pathlib import Path

import pytest

from kvcache.modes import LOCAL, SCOUT, parse_mode
from models.profiles import ModelProfile, ProfileError, builtin_files, load_file, load_profile

ALL = [profile for path in builtin_files().values() for profile in load_file(path).values()]
# layers, head_dim: one fp16 scale covers head_dim values
GEOMETRY = {"qwen2.5-7b": (28, 128), "mistral-7b-v0.3": (32, 128), "qwen2.5-14b": (48, 128)}


@pytest.mark.parametrize("profile", ALL, ids=lambda p: p.name)
def test_every_profile_is_usable(profile: ModelProfile) -> None:
    assert load_profile(profile.name) is profile
    assert {"full", "int8", "int4", "local"} <= set(map(str, profile.modes))
    assert profile.modes[parse_mode("full")].payload_bytes == profile.kv_bytes
    assert [m for m, p in profile.modes.items() if p.payload_bytes == 0] == [LOCAL]
    for mode in profile.modes:
        assert profile.compute_ms(mode) > 0


@pytest.mark.parametrize("model", GEOMETRY)
def test_measured_bytes_follow_from_geometry(model: str) -> None:
    layers, head_dim = GEOMETRY[model]
    profile = load_profile(f"measured/{model}")
    values = profile.kv_bytes / 2
    scales = 2 * values / head_dim
    int4 = values / 2 + scales
    sizes = {str(mode): p.payload_bytes for mode, p in profile.modes.items()}
    assert sizes["int8"] == math.ceil(values + scales)
    assert sizes["int4"] == math.ceil(int4)
    assert sizes["mixed_int4"] == math.ceil(profile.kv_bytes / layers + int4 * (layers - 1) / layers)
    assert sizes["prompt"] == 4 * profile.tokens


def test_paper_b_latency_as_coded() -> None:
    """prefill + quant + 8 * kv_mb * fraction / B + decode, kv_mb as 1e6 bytes."""
    qwen, int8 = load_profile("paper_b/qwen2.5-7b"), parse_mode("int8")
    latency_ms = qwen.compute_ms(int8) + qwen.modes[int8].payload_bytes * 8 / 50e6 * 1e3
    assert latency_ms == pytest.approx(18 + 3 + 8 * 9.3 * 0.5 / 50 * 1e3 + 167)
    assert qwen.compute_ms(SCOUT) == pytest.approx(10 + 1.5 * 18 + 167)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("measured/gpt-9", "no model 'gpt-9'.*qwen2.5-7b"),
        ("nowhere/qwen2.5-7b", "there are.*measured/qwen2.5-14b"),
        ("qwen2.5-7b", "there are.*paper_b/"),
        ("gone.yaml/x", "no profile file"),
    ],
)
def test_missing_profiles_say_what_there_is(name: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        load_profile(name)


MODE = (
    "m: {{kv_bytes: 1, edge_prefill_ms: 1, quality_basis: x, modes: "
    "{{{mode}: {{payload_bytes: {size}, decode_ms: 1, quality: 1}}}}}}"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not YAML"),
        ("- 1", "must map model names"),
        ("m: 5", "must map model names"),
        ("m: 2024-13-45", "not YAML"),
        ("m: {kv_bytes: -1, edge_prefill_ms: 1, quality_basis: x, modes: {full: {}}}", "m.kv_bytes: .*greater than 0"),
        ("m: {kv_bytes: 1, edge_prefill_ms: 1, quality_basis: x, modes: {}, extra: 1}", "m"),
        (MODE.format(mode="q2x@0.5", size=5), r"p.yaml: m.modes.q2x@0.5: no selection 'q2x' .*; there are q2c, "),
        (MODE.format(mode="5", size=5), "m.modes.5: a mode is a text, not 5"),
        (MODE.format(mode="a b", size=5), "m.modes.a b: no mode 'a b'; there are full, .*or a name of your own"),
        (MODE.format(mode="local", size=5), "m: mode local has payload_bytes: 5; only `local` has 0"),
        (MODE.format(mode="int4", size=0), "m: mode int4 has payload_bytes: 0; only `local` has 0"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ProfileError, match=message):
        load_profile("p.yaml/m", tmp_path)


@pytest.mark.parametrize("profile", ALL, ids=lambda p: p.name)
def test_modes_have_their_places_on_the_wire(profile: ModelProfile) -> None:
    assert [profile.mode_at(profile.code_of(mode)) for mode in profile.modes] == list(profile.modes)
    assert [profile.code_of(mode) for mode in profile.modes] == list(range(len(profile.modes)))
    with pytest.raises(IndexError):
        profile.mode_at(len(profile.modes))
