"""Names of operating modes are read and written the same way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcache.modes import QUANTIZER_NAMES, OperatingMode, parse_mode
from kvcache.selection import SELECTIONS

retentions = st.floats(0, 1, exclude_min=True)
cache_modes = st.builds(
    OperatingMode, st.just("cache"), st.sampled_from([*SELECTIONS]), retentions, st.sampled_from(QUANTIZER_NAMES)
)
whole_modes = st.sampled_from([OperatingMode("cache", quantizer=name) for name in QUANTIZER_NAMES])
scouts = st.builds(OperatingMode, st.just("scout"), st.just("q2c_pooled"), retentions)
modes = cache_modes | whole_modes | scouts | st.sampled_from([OperatingMode("prompt"), OperatingMode("local")])


@given(modes)
def test_a_mode_is_what_its_name_says(mode: OperatingMode) -> None:
    assert parse_mode(str(mode)) == mode


@pytest.mark.parametrize(
    ("text", "mode", "canonical"),
    [
        ("full", OperatingMode("cache", None, 1.0, "bf16"), "full"),
        ("bf16", OperatingMode("cache", None, 1.0, "bf16"), "full"),
        ("int8", OperatingMode("cache", None, 1.0, "int8"), "int8"),
        ("mixed_int4", OperatingMode("cache", None, 1.0, "mixed_int4"), "mixed_int4"),
        ("q2c@0.5", OperatingMode("cache", "q2c", 0.5, "bf16"), "q2c@0.5"),
        ("q2c@0.50+bf16", OperatingMode("cache", "q2c", 0.5, "bf16"), "q2c@0.5"),
        ("snapkv@0.25+mixed_int4", OperatingMode("cache", "snapkv", 0.25, "mixed_int4"), "snapkv@0.25+mixed_int4"),
        ("h2o@1+int4_kivi", OperatingMode("cache", "h2o", 1.0, "int4_kivi"), "h2o@1.0+int4_kivi"),
        ("scout", OperatingMode("scout", "q2c_pooled", 0.75), "scout"),
        ("scout@0.75", OperatingMode("scout", "q2c_pooled", 0.75), "scout"),
        ("scout@0.25", OperatingMode("scout", "q2c_pooled", 0.25), "scout@0.25"),
        ("prompt", OperatingMode("prompt"), "prompt"),
        ("local", OperatingMode("local"), "local"),
    ],
)
def test_known_names(text: str, mode: OperatingMode, canonical: str) -> None:
    assert parse_mode(text) == mode
    assert str(mode) == canonical


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no mode ''; there are full, bf16, int8, .*q2c"),
        ("q2c", "no mode 'q2c'; there are .*<selection>@<retention>"),
        ("int3", "no mode 'int3'"),
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
