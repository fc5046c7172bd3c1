"""Times by length: the fit finds what made the samples, and a profile with them serves requests of any length."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.cli.models import parse_contexts
from models.hf.by_length import LengthSample, check_contexts, fit
from models.hf.loading import LoadedModel
from models.lengths import DeviceTimes, Lengths
from models.profiles import load_file
from tests.support.commands import scout

CONTEXTS = (256, 1024, 4096, 16_384)


def samples(times: DeviceTimes, noise: float = 0.0) -> list[LengthSample]:
    rng = np.random.default_rng(1)

    def blurred(ms: float) -> float:
        return ms * float(1 + noise * rng.uniform(-1, 1))

    return [
        LengthSample(n, blurred(times.prefill_of(n)), n + 15.5, blurred(times.decode_of(n + 15.5, 1))) for n in CONTEXTS
    ]


@given(
    st.floats(0, 50), st.floats(0.001, 1), st.floats(0, 100), st.floats(0.5, 50), st.floats(0, 5)
)  # ms, ms, ns, ms, us
def test_the_fit_finds_what_made_the_samples(
    start: float, token: float, pair: float, step: float, position: float
) -> None:
    times = DeviceTimes(
        prefill_ms=start, prefill_token_ms=token, prefill_pair_ns=pair, step_ms=step, step_position_us=position
    )
    found = fit(samples(times))
    assert found.error < 1e-3
    for tokens in (300, 2000, 10_000):
        assert found.times.prefill_of(tokens) == pytest.approx(times.prefill_of(tokens), rel=0.01)
        assert found.times.decode_of(tokens, 32) == pytest.approx(times.decode_of(tokens, 32), rel=0.01)


def test_the_error_is_the_largest_one() -> None:
    times = DeviceTimes(prefill_token_ms=0.1, step_ms=10)
    assert 0.01 < fit(samples(times, noise=0.1)).error < 0.2


def test_two_contexts_have_no_square() -> None:
    times = DeviceTimes(prefill_ms=5, prefill_token_ms=0.1, step_ms=10, step_position_us=1)
    found = fit(samples(times)[:2])
    assert found.times.prefill_pair_ns == 0 and found.times.prefill_of(512) == pytest.approx(56.2, rel=0.01)


def test_a_calibrated_profile_is_a_function_of_lengths(tmp_path: Path) -> None:
    pair = ("calibrate", "family/tiny", "--cloud", "family/base", "--modes", "int8,prompt,local", "--count", "1")
    out = tmp_path / "p.yaml"
    assert scout(*pair, "--lengths", "32,64,128", "--out", out).returncode == 0
    profile = load_file(out)["tiny"]
    assert profile.lengths is not None and profile.lengths.contexts == (32, 128)
    assert profile.lengths.error is not None and profile.answer_tokens > 1
    for mode in profile.modes:
        short, long = (profile.compute_ms(mode, Lengths(tokens, 8)) for tokens in (32, 4096))
        assert 0 < short <= long


def test_lengths_are_checked_before_anything_is_measured() -> None:
    model = cast(LoadedModel, SimpleNamespace(max_positions=100, spec=SimpleNamespace(name="m")))
    for contexts, said in (([32], "at least two lengths"), ([32, 90], "m takes contexts of 2 to 84"), ([1, 9], "2 to")):
        with pytest.raises(ValueError, match=said):
            check_contexts(contexts, 16, model)
    for text in ("32,x", "0,5", ","):
        with pytest.raises(ValueError, match="numbers by comma"):
            parse_contexts(text)
    assert parse_contexts(None) == [] and parse_contexts("32, 64") == [32, 64]
