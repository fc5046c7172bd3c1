"""Estimators of the uplink's rate, for the allocator. They see only past reports, except the non-causal ones."""

import math
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field, PrivateAttr

from configs.settings import Settings
from netem.wire import MAX_RATE_MBPS

Safety = Annotated[float, Field(gt=0, le=1)]
# The spread comes from the last windows: the mean of their reports over the estimator's mean before them, summarized as
# equally probable quantiles.
RATIO_WINDOW = 128
SPREAD_POINTS = 16
# The prior: ratios assumed before the first report, mostly near 1, with an occasional outage. Means of several
# intervals deviate less from 1, as those of independent ones do.
PRIOR_RATIOS = (0.1, 0.4, 0.7, 0.9, 1.0, 1.0, 1.1, 1.3)


class EstimatorSettings(Settings):
    """Base of estimators: public fields are settings, private attributes hold the learned state."""

    model_config = ConfigDict(frozen=False)

    def report(self, mbps: float) -> None:
        """Learn the rate (Mbit/s) that the base station measured over the interval that has just ended."""

    def peek(self, mbps: float) -> None:
        """Learn the rate (Mbit/s) that begins now. A causal estimator doesn't override this."""

    def estimate(self) -> float:
        """The uplink's estimated rate in Mbit/s. Raises RuntimeError before the first report."""
        raise NotImplementedError

    def spread(self, intervals: float = 1.0) -> Sequence[float]:
        """Equally probable mean rates of the uplink in Mbit/s, ascending; a single one if there is no uncertainty.

        Args:
            intervals: the window over which the rate is averaged, from now on, in report intervals.
        """
        return (self.estimate(),)


class Ewma(EstimatorSettings):
    """Causal: exponentially weighted mean of the reports so far, times `safety` (paper B: 0.3 and 0.8).

    The first report initialises the mean.
    """

    kind: Literal["ewma"] = "ewma"
    alpha: float = Field(default=0.3, gt=0, le=1, description="weight of the newest report")
    safety: Safety = Field(default=0.8, description="the estimate is the mean times this")
    _mean: float | None = None
    _past: deque[tuple[float, float]] = PrivateAttr(default_factory=lambda: deque(maxlen=2 * RATIO_WINDOW))
    _quantiles: dict[int, list[float]] = PrivateAttr(default_factory=dict)

    def report(self, mbps: float) -> None:
        if self._mean is not None:
            self._past.append((self._mean, mbps))
        self._mean = mbps if self._mean is None else self.alpha * mbps + (1 - self.alpha) * self._mean
        self._quantiles.clear()

    def estimate(self) -> float:
        return self.safety * self._known_mean()

    def spread(self, intervals: float = 1.0) -> Sequence[float]:
        """The mean times the quantiles of past windows of as many reports. `safety` is the point estimate's only.

        Windows overlap and are as they were, so that serial correlation and outages are in them.
        """
        reports = min(max(1, round(intervals)), RATIO_WINDOW)
        if reports not in self._quantiles:
            self._quantiles[reports] = self._spread_of(reports)
        return self._quantiles[reports]

    def _spread_of(self, reports: int) -> list[float]:
        mean = self._known_mean()
        ratios = [1 + (ratio - 1) / math.sqrt(reports) for ratio in PRIOR_RATIOS]
        carried = list(accumulate((mbps for _, mbps in self._past), initial=0.0))
        for begin, end in zip(range(len(carried)), range(reports, len(carried)), strict=False):
            ratios.append((carried[end] - carried[begin]) / reports / self._past[begin][0])
        ordered = sorted(ratios[-RATIO_WINDOW:])
        middles = [(2 * i + 1) * len(ordered) // (2 * SPREAD_POINTS) for i in range(SPREAD_POINTS)]
        return [mean * ordered[middle] for middle in middles]

    def _known_mean(self) -> float:
        if self._mean is None:
            raise RuntimeError("an estimate needs one report first")
        return self._mean


class PublishedEwma(Ewma):
    """The papers' evaluation: updates with the present rate before each decision. Not causal; for their tables."""

    kind: Literal["published_ewma"] = "published_ewma"  # type: ignore[assignment]

    def report(self, mbps: float) -> None:
        if self._mean is None:
            super().report(mbps)

    def peek(self, mbps: float) -> None:
        super().report(mbps)


class Oracle(EstimatorSettings):
    """Knows the channel's present rate. Not causal: an upper bound, and the papers' multi-agent evaluation."""

    kind: Literal["oracle"] = "oracle"
    _now: float | None = None

    def report(self, mbps: float) -> None:
        self._now = mbps if self._now is None else self._now

    def peek(self, mbps: float) -> None:
        self._now = mbps

    def estimate(self) -> float:
        if self._now is None:
            raise RuntimeError("an estimate needs one report first")
        return self._now


class Fixed(EstimatorSettings):
    """A constant from the scenario, independent of reports."""

    kind: Literal["fixed"] = "fixed"
    mbps: float = Field(gt=0, le=MAX_RATE_MBPS, description="the estimate, at all times")

    def estimate(self) -> float:
        return self.mbps


AnyEstimator = Annotated[Ewma | PublishedEwma | Oracle | Fixed, Field(discriminator="kind")]
ESTIMATORS: dict[str, type[EstimatorSettings]] = {
    estimator.model_fields["kind"].default: estimator for estimator in get_args(get_args(AnyEstimator)[0])
}
