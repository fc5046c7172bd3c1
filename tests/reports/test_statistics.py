"""Statistics with known truth: what isn't there is seldom found, what is there nearly always."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reports.statistics import compare, holm, interval, least_runs, sign_flip_p

runs = st.lists(st.integers(-200, 200).map(lambda n: n / 4), min_size=2, max_size=12)


def compliance(rng: np.random.Generator, seeds: int, advantage: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two allocators' compliance in points over runs: the seed moves both, and each a little by itself."""
    shared = rng.normal(80, 8, seeds)
    return shared + advantage + rng.normal(0, 2.5, seeds), shared + rng.normal(0, 2.5, seeds)


@pytest.mark.parametrize("seeds", [6, 10, 20])
def test_two_equal_allocators_are_seldom_called_different(seeds: int) -> None:
    rng = np.random.default_rng(11)
    called = [compare([compliance(rng, seeds)], rng)[0].verdict for _ in range(500)]
    wrong = sum(not words.startswith("no difference shown") for words in called)
    # At most 5 % in truth, so in 500 trials seldom (once in a thousand) more than this, whatever the generator's seed.
    assert wrong <= stats.binom.ppf(0.999, 500, 0.05)


def test_an_advantage_of_three_points_is_found_with_twenty_seeds() -> None:
    rng = np.random.default_rng(12)
    called = [compare([compliance(rng, 20, advantage=3.0)], rng)[0].verdict for _ in range(200)]
    assert sum(words.startswith("better by") for words in called) >= 0.90 * 200


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(13)
    held = 0
    for _ in range(200):
        low, high = interval(rng.normal(3, 2, 20), rng)
        held += low <= 3 <= high
    assert 0.89 <= held / 200 <= 0.99


def test_correlated_seeds_would_hide_it_without_pairing() -> None:
    rng = np.random.default_rng(14)
    first, second = compliance(rng, 20, advantage=3.0)
    assert compare([(first, second)], rng)[0].holm_p < 0.05
    assert compare([(rng.permutation(first), second)], rng)[0].high - 3 > 2, (
        "the same values, out of step: a wide interval"
    )


@given(runs)
@settings(deadline=None, max_examples=30)
def test_sign_flips_are_exact_and_symmetric(differences: list[float]) -> None:
    rng = np.random.default_rng(0)
    values = np.array(differences)
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(values))).reshape(len(values), -1)
    means = np.abs((signs * values[:, None]).mean(axis=0))
    exact = float((means >= abs(values.mean()) - 1e-9).mean())
    assert sign_flip_p(differences, rng) == pytest.approx(exact, abs=1e-9)
    assert sign_flip_p([-d for d in differences], rng) == pytest.approx(exact, abs=1e-9)


@given(runs, st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_no_winner_where_the_interval_holds_zero(differences: list[float], seed: int) -> None:
    (found,) = compare([(differences, [0.0] * len(differences))], np.random.default_rng(seed))
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9
    if found.low <= 0 <= found.high or found.holm_p > 0.05:
        assert not found.verdict.startswith(("better", "worse"))


def test_holm_by_its_own_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_few_runs_never_decide() -> None:
    (found,) = compare([([90.0] * 5, [10.0] * 5)], np.random.default_rng(0))
    assert found.verdict.startswith("too few runs to tell, by 1: +80.0 points")
    (found,) = compare([([90.0], [10.0])], np.random.default_rng(0))
    assert found.verdict.startswith("too few runs to tell, by 5: +80.0 points") and found.holm_p == 1
    with pytest.raises(ValueError, match="same runs"):
        compare([([1.0], [1.0, 2.0])], np.random.default_rng(0))


def test_more_comparisons_need_more_runs() -> None:
    pair = ([80.0, 81.0, 82.0, 83.0, 80.0, 81.0, 82.0], [40.0] * 7)
    assert [least_runs(n) for n in (1, 3, 6)] == [6, 7, 8]
    seven = compare([pair] * 6, np.random.default_rng(0))
    assert {found.verdict.split(":")[0] for found in seven} == {"too few runs to tell, by 1"}
    eight = compare([(pair[0] + [84.0], [40.0] * 8)] * 6, np.random.default_rng(0))
    assert all(found.verdict.startswith("better by") for found in eight)
