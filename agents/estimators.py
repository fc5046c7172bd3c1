"""What the allocator believes about the uplink. Estimators see only the past, except those named for looking ahead."""

from collections import deque
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from netem.wire import MAX_RATE_MBPS

Safety = Annotated[float, Field(gt=0, le=1)]
# How far reports were from the mean before them: of the last so many, summed up in so many equally probable rates.
REMEMBERED = 128
SPREAD_POINTS = 16
# What is believed of that before anything was seen, as if seen already: mostly as expected, now and then an outage.
PRIOR_RATIOS = (0.1, 0.4, 0.7, 0.9, 1.0, 1.0, 1.1, 1.3)


class EstimatorSettings(BaseModel):
    """Base of estimators: settings are fields, what it has learnt is private."""

    model_config = ConfigDict(extra="forbid")

    def report(self, mbps: float) -> None:
        """The base station measured `mbps` over the interval that has just ended."""

    def peek(self, mbps: float) -> None:
        """The rate that begins now. A causal estimator doesn't override this."""

    def estimate(self) -> float:
        """The uplink in Mbit/s, as believed now. Needs one report first."""
        raise NotImplementedError

    def spread(self) -> Sequence[float]:
        """Equally probable rates of the uplink in Mbit/s, ascending; one if there is no doubt."""
        return (self.estimate(),)


class Ewma(EstimatorSettings):
    """Causal: exponentially weighted mean of the reports so far, times `safety` (paper B: 0.3 and 0.8).

    The first report initialises the mean.
    """

    kind: Literal["ewma"] = "ewma"
    alpha: float = Field(default=0.3, gt=0, le=1)
    safety: Safety = 0.8
    _mean: float | None = None
    _ratios: deque[float] = PrivateAttr(default_factory=lambda: deque(PRIOR_RATIOS, REMEMBERED))

    def report(self, mbps: float) -> None:
        if self._mean is not None:
            self._ratios.append(mbps / self._mean)
        self._mean = mbps if self._mean is None else self.alpha * mbps + (1 - self.alpha) * self._mean

    def estimate(self) -> float:
        return self.safety * self._known_mean()

    def spread(self) -> Sequence[float]:
        """The mean times what reports have been of it so far. Safety is for those who believe in one number."""
        ordered = sorted(self._ratios)
        middles = [(2 * i + 1) * len(ordered) // (2 * SPREAD_POINTS) for i in range(SPREAD_POINTS)]
        return [self._known_mean() * ordered[middle] for middle in middles]

    def _known_mean(self) -> float:
        if self._mean is None:
            raise RuntimeError("an estimate needs one report first")
        return self._mean


class PublishedEwma(Ewma):
    """The papers' evaluation: updates with the present rate, then decides for it. Looks ahead, for their tables."""

    kind: Literal["published_ewma"] = "published_ewma"  # type: ignore[assignment]

    def report(self, mbps: float) -> None:
        if self._mean is None:
            super().report(mbps)

    def peek(self, mbps: float) -> None:
        super().report(mbps)


class Oracle(EstimatorSettings):
    """Knows the channel's present rate. Not causal: an upper bound, and the papers' multi-agent rounds."""

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
    """A number written in the scenario, whatever happens."""

    kind: Literal["fixed"] = "fixed"
    mbps: float = Field(gt=0, le=MAX_RATE_MBPS)

    def estimate(self) -> float:
        return self.mbps


ESTIMATORS: dict[str, type[EstimatorSettings]] = {
    "ewma": Ewma,
    "published_ewma": PublishedEwma,
    "oracle": Oracle,
    "fixed": Fixed,
}
AnyEstimator = Annotated[Ewma | PublishedEwma | Oracle | Fixed, Field(discriminator="kind")]
