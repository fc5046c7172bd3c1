"""Operating modes are read and written the same way, know what they are, and need no torch."""

import pickle
import subprocess
import sys
from dataclasses import astuple

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvcache.modes import LOCAL, MIXED, PROMPT, QUANTIZER_NAMES, SCOUT, SELECTION_NAMES, Mode, parse_mode, parse_modes
from kvcache.quantizers import QUANTIZERS
from kvcache.selection import SELECTIONS
from models.profiles import builtin_files, load_file

retentions = st.floats(0, 1, exclude_min=True)
cache_modes = st.builds(
    Mode, st.just("cache"), st.sampled_from(SELECTION_NAMES), retentions, st.sampled_from(QUANTIZER_NAMES)
)
whole_modes = st.sampled_from([Mode("cache", quantizer=name) for name in QUANTIZER_NAMES])
scouts = st.builds(Mode, st.just("scout"), st.just("q2c_pooled"), retentions)
modes = cache_modes | whole_modes | scouts | st.sampled_from([Mode("prompt"), Mode("local")])


@given(modes)
def test_a_mode_is_what_its_text_says(mode: Mode) -> None:
    assert astuple(parse_mode(str(mode))) == astuple(mode)
    again = pickle.loads(pickle.dumps(mode))  # noqa: S301 -- as Ray does with what actors are told
    assert again == mode and hash(again) == hash(mode) and astuple(again) == astuple(mode)


@given(modes, modes)
def test_modes_are_equal_if_their_fields_are(one: Mode, other: Mode) -> None:
    assert (one == other) == (astuple(one) == astuple(other))


@given(st.text() | st.text("q2cscout@0.5+int8_-"))
def test_any_text_is_a_mode_or_refused(text: str) -> None:
    try:
        mode = parse_mode(text)
    except ValueError as error:
        assert str(error).isprintable()
    else:
        assert parse_mode(str(mode)) == mode


def test_shipped_profiles_are_written_as_they_are_read() -> None:
    for path in builtin_files().values():
        written = yaml.safe_load(path.read_text())
        for model, profile in load_file(path).items():
            assert [str(mode) for mode in profile.modes] == list(written[model]["modes"])


def test_names_are_those_of_the_registries() -> None:
    assert (*QUANTIZERS, MIXED) == QUANTIZER_NAMES
    assert tuple(SELECTIONS) == SELECTION_NAMES


def test_what_modes_are() -> None:
    kinds = {
        text: (mode.is_cache, mode.is_question, mode.is_local, mode.needs_context)
        for text in ("full", "q2c50_int8", "q2c@0.5+int8", "prompt", "scout", "scout@0.25", "local")
        if (mode := parse_mode(text))
    }
    cache, prompt, scout = (True, False, False, False), (False, True, False, False), (False, True, False, True)
    assert kinds == {
        **dict.fromkeys(("full", "q2c50_int8", "q2c@0.5+int8"), cache),
        "prompt": prompt,
        **dict.fromkeys(("scout", "scout@0.25"), scout),
        "local": (False, False, True, False),
    }
    assert (parse_mode("prompt"), parse_mode("scout"), parse_mode("local")) == (PROMPT, SCOUT, LOCAL)


@pytest.mark.parametrize(
    "module", ["kvcache.modes", "allocator.policies", "cluster.simulated.engine", "cluster.cli.app"]
)
def test_no_torch_where_no_model_runs(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "mode", "canonical"),
    [
        ("full", Mode("cache", None, 1.0, "bf16"), "full"),
        ("bf16", Mode("cache", None, 1.0, "bf16"), "full"),
        ("int8", Mode("cache", None, 1.0, "int8"), "int8"),
        ("mixed_int4", Mode("cache", None, 1.0, "mixed_int4"), "mixed_int4"),
        ("q2c@0.5", Mode("cache", "q2c", 0.5, "bf16"), "q2c@0.5"),
        ("q2c@0.50+bf16", Mode("cache", "q2c", 0.5, "bf16"), "q2c@0.5"),
        ("snapkv@0.25+mixed_int4", Mode("cache", "snapkv", 0.25, "mixed_int4"), "snapkv@0.25+mixed_int4"),
        ("h2o@1+int4_kivi", Mode("cache", "h2o", 1.0, "int4_kivi"), "h2o@1.0+int4_kivi"),
        ("scout", Mode("scout", "q2c_pooled", 0.75), "scout"),
        ("scout@0.75", Mode("scout", "q2c_pooled", 0.75), "scout"),
        ("scout@0.25", Mode("scout", "q2c_pooled", 0.25), "scout@0.25"),
        ("prompt", Mode("prompt"), "prompt"),
        ("local", Mode("local"), "local"),
    ],
)
def test_known_names(text: str, mode: Mode, canonical: str) -> None:
    assert parse_mode(text) == mode
    assert str(mode) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no mode ''; there are full, bf16, int8, .*q2c"),
        ("int3+", "no mode 'int3\\+'"),
        ("a" * 65, "a name of your own .*64 at most"),
        ("int8+q2c@0.5", "no selection 'int8\\+q2c'"),
        ("best@0.5", "no selection 'best' .*; there are q2c, q2c_last, q2c_pooled, snapkv, h2o, streaming, random"),
        ("prompt@0.5", "no selection 'prompt'"),
        ("q2c@0.5+int3", "no quantizer 'int3' .*mixed_int4"),
        ("q2c@0.5+", "no quantizer ''"),
        ("scout@0.5+int8", "retention of '0.5\\+int8'"),
        ("q2c@", "retention of ''"),
        ("q2c@0", "retention of '0'"),
        ("q2c@1.5", "above 0 and at most 1"),
        ("q2c@nan", "retention of 'nan'"),
        ("q2c@50%", "retention of '50%'"),
    ],
)
def test_mistakes_say_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_mode(text)


@pytest.mark.parametrize("text", ["int3", "full,q2c", "q2c50_full"])
def test_models_know_no_other_names(text: str) -> None:
    with pytest.raises(ValueError, match=r"no model knows mode '(int3|q2c|q2c50_full)'; they know full, bf16, int8"):
        parse_modes(text)


def test_each_mode_of_a_list_is_taken_once() -> None:
    assert list(map(str, parse_modes("full,scout@0.75,bf16,scout"))) == ["full", "scout"]
