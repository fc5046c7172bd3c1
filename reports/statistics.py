"""Comparison of allocators by paired statistics over runs, never over requests.

Requests of one run share its arrivals and channel, so they aren't independent observations; runs with different seeds
are. Two allocators of one run have the same arrivals and channel, so their difference in that run is one observation of
a paired difference (common random numbers).
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
DRAWN_AT_ONCE = 2**20  # signs: 16 MiB


@dataclass(frozen=True)
class Difference:
    """The difference between two allocators in one metric.

    Attributes:
        mean, low, high: the mean of the paired differences over runs, and its 95 % bootstrap interval.
        p: two-sided, by sign flips; holm_p: corrected for all comparisons of its family.
        verdict: in words; one is better only if the interval excludes zero and holm_p is at most 5 %.
    """

    mean: float
    low: float
    high: float
    p: float
    holm_p: float
    verdict: str


def interval(values: ArrayLike, rng: np.random.Generator) -> tuple[float, float]:
    """A 95 % interval of the mean over runs, by bias-corrected, accelerated bootstrap (Efron 1987).

    For one value, or equal ones, both bounds are that value, since their variance is unknown.
    """
    data = np.asarray(values, dtype=float)
    if np.ptp(data) == 0:
        return float(data[0]), float(data[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (data,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="BCa", rng=rng
        ).confidence_interval
        if np.isnan([found.low, found.high]).any():  # values nearly all equal: the acceleration is undefined
            found = stats.bootstrap(
                (data,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile", rng=rng
            ).confidence_interval
    return float(found.low), float(found.high)


def sign_flip_p(differences: ArrayLike, rng: np.random.Generator) -> float:
    """The two-sided p value of the mean difference under random sign flips.

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
    """The fewest runs in which a difference can be significant after Holm's correction of `comparisons`."""
    return next(n for n in count(1) if comparisons * 2 / 2**n <= 1 - CONFIDENCE)


def compare(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], rng: np.random.Generator, unit: str = "points"
) -> list[Difference]:
    """Compare the first of each pair with the second, as one family of comparisons.

    Args:
        pairs: values of two allocators, run by run in the same order; higher is better.
        unit: the values' unit, for the verdicts.

    Raises:
        ValueError: a pair's lengths differ, or it has no runs.
    """
    differences = [np.subtract(first, second) for first, second in pairs if len(first) == len(second) and len(first)]
    if len(differences) != len(pairs):
        raise ValueError("both allocators of a pair need a value for each of the same runs")
    p_values = [sign_flip_p(each, rng) for each in differences]
    found = []
    for each, p, holm_p in zip(differences, p_values, holm(p_values), strict=True):
        low, high = interval(each, rng)
        mean, runs_short = float(each.mean()), max(0, least_runs(len(pairs)) - len(each))
        found.append(Difference(mean, low, high, p, holm_p, verdict(mean, low, high, holm_p, unit, runs_short)))
    return found


def verdict(mean: float, low: float, high: float, holm_p: float, unit: str, runs_short: int) -> str:
    """`better by 12.3 points [9.8, 14.9]`, `worse by ...`, or that no difference was shown, with the reason.

    Args:
        runs_short: the number of runs missing before a difference could be significant.
    """
    span = f"{unit} [{low:.1f}, {high:.1f}]"
    if runs_short:
        return f"too few runs to tell, by {runs_short}: {mean:+.1f} {span}"
    if holm_p > 1 - CONFIDENCE or low <= 0 <= high:
        return f"no difference shown: {mean:+.1f} {span}"
    if mean > 0:
        return f"better by {mean:.1f} {span}"
    return f"worse by {-mean:.1f} {unit} [{-high:.1f}, {-low:.1f}]"


POWER_FACTOR = 1.96 + 0.84  # standard errors that a two-sided test at 5 % sees with a power of 80 %


def clustered_intervals(
    values: ArrayLike, clusters: ArrayLike, rng: np.random.Generator, resamples: int = 4_000
) -> np.ndarray:
    """Means and 95 % percentile bootstrap intervals of examples that come in clusters, such as questions on one text.

    Whole clusters are drawn, the same ones for every column, so that columns stay paired.

    Args:
        values: [examples] or [examples, columns]; clusters: [examples], whose text each example is about.

    Returns:
        [columns, 3]: mean, lower and upper bound.
    """
    data = np.asarray(values, dtype=float)
    data = data[:, None] if data.ndim == 1 else data
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(member.max()) + 1
    sums = np.zeros((count, data.shape[1]))
    np.add.at(sums, member, data)
    sizes = np.bincount(member, minlength=count)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    means = (drawn @ sums) / (drawn @ sizes)[:, None]
    return np.column_stack([data.mean(0), *np.percentile(means, [2.5, 97.5], axis=0)])


def clustered_ps(differences: ArrayLike, clusters: ArrayLike, rng: np.random.Generator) -> list[float]:
    """Two-sided p values of means of paired differences, by flipping the signs of whole clusters 9,999 times.

    Args:
        differences: [examples, columns]; clusters: [examples].
    """
    data = np.asarray(differences, dtype=float)
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((int(member.max()) + 1, data.shape[1]))
    np.add.at(sums, member, data)
    seen = np.abs(sums.sum(0)) * (1 - 1e-12)  # rounding must not hide ties
    as_far, rows = np.zeros(data.shape[1], dtype=int), max(1, DRAWN_AT_ONCE // len(sums))
    for done in range(0, RESAMPLES, rows):
        signs = rng.integers(2, size=(min(rows, RESAMPLES - done), len(sums))) * 2.0 - 1.0
        as_far += (np.abs(signs @ sums) >= seen).sum(0)
    return [float(count) for count in (1 + as_far) / (1 + RESAMPLES)]


def detectable(differences: ArrayLike, clusters: ArrayLike) -> float:
    """The true mean difference that this many examples show with a power of 80 %, at 5 % two-sided, one comparison.

    From the standard error of clustered means; 0 for differences that are all equal.
    """
    data = np.asarray(differences, dtype=float)
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(member.max()) + 1
    if count < 2:
        return float("nan")
    sums = np.bincount(member, weights=data - data.mean())
    return float(POWER_FACTOR * np.sqrt(count / (count - 1) * (sums**2).sum()) / len(data))
