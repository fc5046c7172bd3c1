"""Which allocator is better: paired statistics over runs, never over requests.

Requests of one run share its arrivals and its channel, so they are no independent observations; runs with different
seeds are. Two allocators of one run saw the same arrivals and channel, so their difference in that run is one
observation of the difference (common random numbers).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9_999


@dataclass(frozen=True)
class Difference:
    """One allocator against another in one metric.

    Attributes:
        mean, low, high: of the paired differences over runs, with a 95 % bootstrap interval.
        p: by sign flips, two-sided; holm_p: corrected for all comparisons of its family.
        verdict: in words; a winner only where the interval leaves zero out and holm_p is at most 5 %.
    """

    mean: float
    low: float
    high: float
    p: float
    holm_p: float
    verdict: str


def interval(values: ArrayLike, rng: np.random.Generator) -> tuple[float, float]:
    """A 95 % interval of the mean over runs, by bias-corrected, accelerated bootstrap (Efron 1987).

    One value, or equal ones, are their own interval: nothing is known of how much they vary.
    """
    data = np.asarray(values, dtype=float)
    if np.ptp(data) == 0:
        return float(data[0]), float(data[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (data,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="BCa", rng=rng
        ).confidence_interval
        if np.isnan([found.low, found.high]).any():  # nearly all equal: no acceleration can be had
            found = stats.bootstrap(
                (data,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile", rng=rng
            ).confidence_interval
    return float(found.low), float(found.high)


def sign_flip_p(differences: ArrayLike, rng: np.random.Generator) -> float:
    """How often the mean is as far from zero if every difference's sign were a coin's; two-sided.

    Exact up to 13 runs (8,192 patterns), else from 9,999 random patterns.
    """
    data = np.asarray(differences, dtype=float)
    if not data.any() or len(data) == 1:
        return 1.0
    found = stats.permutation_test(
        (data,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, alternative="two-sided", rng=rng
    )
    return float(min(1.0, found.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) of a family of p values, in their order."""
    corrected = [0.0] * len(p_values)
    so_far = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = so_far
    return corrected


def least_runs(comparisons: int) -> int:
    """With fewer, nobody can win: chance gives all differences one sign more often than Holm's correction allows."""
    return next(n for n in count(1) if comparisons * 2 / 2**n <= 1 - CONFIDENCE)


def compare(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], rng: np.random.Generator, unit: str = "points"
) -> list[Difference]:
    """The first of each pair against the second, as one family of comparisons.

    Args:
        pairs: values of two allocators, run by run in the same order; better is more.
        unit: of the values, for the verdicts.

    Raises:
        ValueError: a pair's lengths differ, or it has no runs.
    """
    differences = [np.subtract(first, second) for first, second in pairs if len(first) == len(second) and len(first)]
    if len(differences) != len(pairs):
        raise ValueError("both of a pair need a value for each of the same runs")
    p_values = [sign_flip_p(each, rng) for each in differences]
    found = []
    for each, p, holm_p in zip(differences, p_values, holm(p_values), strict=True):
        low, high = interval(each, rng)
        mean, runs_short = float(each.mean()), max(0, least_runs(len(pairs)) - len(each))
        found.append(Difference(mean, low, high, p, holm_p, verdict(mean, low, high, holm_p, unit, runs_short)))
    return found


def verdict(mean: float, low: float, high: float, holm_p: float, unit: str, runs_short: int) -> str:
    """`better by 12.3 points [9.8, 14.9]`, `worse by ...`, or that no difference was shown, and why not.

    Args:
        runs_short: how many runs are missing before anybody could win.
    """
    span = f"{unit} [{low:.1f}, {high:.1f}]"
    if runs_short:
        return f"too few runs to tell, by {runs_short}: {mean:+.1f} {span}"
    if holm_p > 1 - CONFIDENCE or low <= 0 <= high:
        return f"no difference shown: {mean:+.1f} {span}"
    if mean > 0:
        return f"better by {mean:.1f} {span}"
    return f"worse by {-mean:.1f} {unit} [{-high:.1f}, {-low:.1f}]"
