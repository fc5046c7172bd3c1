"""Workloads by formula: gaps between requests and lengths, fitted to what was published of recorded ones."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from agents.arrivals.base import Arrival, ArrivalProcess
from configs.settings import Settings
from models.lengths import MAX_TOKENS, Lengths, Tokens

Z90 = 1.2815515655446004  # the standard normal distribution's 90 % point
CHUNK = 1024


class Gaps(Settings):
    """Base of what the times between requests are like."""

    def times(self, rate_per_s: float, duration_s: float, rng: np.random.Generator) -> list[float]:
        """Seconds of the requests in [0, duration_s), ascending, `rate_per_s` of them a second on average."""
        raise NotImplementedError


class RenewalGaps(Gaps):
    """Independent gaps; `draw` has mean 1."""

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        raise NotImplementedError

    def times(self, rate_per_s: float, duration_s: float, rng: np.random.Generator) -> list[float]:
        found: list[float] = []
        at_s = 0.0
        while True:
            for gap in self.draw(CHUNK, rng) / rate_per_s:
                at_s += float(gap)
                if at_s >= duration_s:
                    return found
                found.append(at_s)


class PoissonGaps(RenewalGaps):
    """Exponential gaps."""

    kind: Literal["poisson"] = "poisson"

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        return rng.exponential(1.0, size)


class GammaGaps(RenewalGaps):
    """Gamma distributed gaps: shape 1 / cv^2."""

    kind: Literal["gamma"] = "gamma"
    cv: float = Field(ge=0.05, le=50, description="standard deviation of the gaps by their mean; 1 is Poisson")

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        shape = self.cv**-2
        return rng.gamma(shape, 1 / shape, size)


class WeibullGaps(RenewalGaps):
    """Weibull distributed gaps: heavier tails than gamma at the same cv."""

    kind: Literal["weibull"] = "weibull"
    cv: float = Field(ge=0.05, le=50, description="standard deviation of the gaps by their mean; 1 is Poisson")

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        shape = weibull_shape(self.cv)
        return rng.weibull(shape, size) / math.gamma(1 + 1 / shape)


class ModulatedGaps(Gaps):
    """A Markov-modulated Poisson process of two states, quiet and busy."""

    kind: Literal["modulated"] = "modulated"
    factor: float = Field(gt=1, le=1000, description="how many times as many requests a second in the busy state")
    busy_s: float = Field(gt=0, le=1e5, description="mean length of a busy spell")
    quiet_s: float = Field(gt=0, le=1e5, description="mean length of a quiet spell")

    def times(self, rate_per_s: float, duration_s: float, rng: np.random.Generator) -> list[float]:
        quiet_rate = rate_per_s * (self.busy_s + self.quiet_s) / (self.factor * self.busy_s + self.quiet_s)
        busy = bool(rng.random() < self.busy_s / (self.busy_s + self.quiet_s))
        found: list[float] = []
        at_s = 0.0
        while at_s < duration_s:
            end_s = min(duration_s, at_s + float(rng.exponential(self.busy_s if busy else self.quiet_s)))
            rate = quiet_rate * (self.factor if busy else 1.0)
            found += sorted(map(float, rng.uniform(at_s, end_s, rng.poisson(rate * (end_s - at_s)))))
            at_s, busy = end_s, not busy
        return found


class DiurnalGaps(Gaps):
    """A Poisson process whose rate follows a sine: mean rate at the start, then the day's peak."""

    kind: Literal["diurnal"] = "diurnal"
    period_s: float = Field(default=86_400.0, gt=0, le=1e7, description="a day's length")
    swing: float = Field(default=0.5, ge=0, le=1, description="the peak is so much above the mean rate: 0.5 is half")

    def times(self, rate_per_s: float, duration_s: float, rng: np.random.Generator) -> list[float]:
        most = rate_per_s * (1 + self.swing)
        candidates = np.sort(rng.uniform(0, duration_s, rng.poisson(most * duration_s)))
        share = (1 + self.swing * np.sin(2 * np.pi * candidates / self.period_s)) / (1 + self.swing)
        return [float(at_s) for at_s in candidates[rng.random(len(candidates)) < share]]


AnyGaps = Annotated[PoissonGaps | GammaGaps | WeibullGaps | ModulatedGaps | DiurnalGaps, Field(discriminator="kind")]


class LognormalTokens(Settings):
    """Lognormal lengths, by their median and 90 % point; cut at `most`, as context windows cut them."""

    kind: Literal["lognormal"] = "lognormal"
    p50: float = Field(ge=1, le=MAX_TOKENS, description="the median, in tokens")
    p90: float = Field(ge=1, le=MAX_TOKENS, description="exceeded by a tenth, in tokens")
    most: Tokens = Field(default=MAX_TOKENS, description="longer ones have this length")

    @model_validator(mode="after")
    def _ascending(self) -> "LognormalTokens":
        if self.p50 > self.p90:
            raise ValueError(f"p50 {self.p50:g} is above p90 {self.p90:g}")
        return self

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        sigma = math.log(self.p90 / self.p50) / Z90
        drawn = rng.lognormal(math.log(self.p50), sigma, size)
        return np.clip(np.rint(drawn), 1, self.most).astype(int)


class EmpiricalTokens(Settings):
    """Lengths drawn from a list."""

    kind: Literal["empirical"] = "empirical"
    values: list[Tokens] = Field(min_length=1, max_length=1_000_000, description="in tokens, equally probable")

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        return rng.choice(self.values, size)


AnyTokens = Annotated[LognormalTokens | EmpiricalTokens, Field(discriminator="kind")]


class Kind(NamedTuple):
    """What a workload of this kind is like; `source` is what it was fitted to."""

    rate_per_s: float
    gaps: Gaps
    context_tokens: LognormalTokens
    output_tokens: LognormalTokens
    source: str


KINDS = {
    "chat": Kind(
        5.5,
        GammaGaps(cv=1.09),
        LognormalTokens(p50=1020, p90=2735, most=4200),
        LognormalTokens(p50=129, p90=424, most=650),
        "Azure's conversation trace of 2023 (Patel et al., Splitwise, ISCA 2024)",
    ),
    "code": Kind(
        2.6,
        GammaGaps(cv=13.2),
        LognormalTokens(p50=1469, p90=5194, most=7500),
        LognormalTokens(p50=13, p90=55, most=2000),
        "Azure's code trace of 2023 (the same)",
    ),
    "long_document": Kind(
        3.4,
        PoissonGaps(),
        LognormalTokens(p50=6909, p90=27367, most=126_000),
        LognormalTokens(p50=350, p90=597, most=2000),
        "Mooncake's conversation trace (Qin et al., FAST 2025)",
    ),
}


class GeneratedWorkload(ArrivalProcess):
    """Requests of all agents together, each of a random agent, with lengths. What isn't given is as `like` has it."""

    kind: Literal["generated"] = "generated"
    like: Literal["chat", "code", "long_document"] = Field(description="gaps, lengths and rate, where not given here")
    rate_per_s: float | None = Field(default=None, gt=0, le=100_000, description="of all agents together")
    duration_s: float = Field(gt=0, le=1e6, description="requests are released for so long")
    gaps: AnyGaps | None = Field(default=None, description="what the times between requests are like")
    context_tokens: AnyTokens | None = Field(default=None, description="lengths of contexts")
    output_tokens: AnyTokens | None = Field(default=None, description="lengths of answers")
    lengths: Literal["drawn", "profile"] = Field(
        default="drawn", description="profile: all requests have the lengths of their agent's profile"
    )

    @property
    def sized(self) -> bool:
        return self.lengths == "drawn"

    def extent(self, agents: int) -> tuple[float, float]:
        return (self.rate_per_s or KINDS[self.like].rate_per_s) * self.duration_s, self.duration_s

    def schedule(self, agents: int, rng: np.random.Generator) -> list[Arrival]:
        kind = KINDS[self.like]
        times = (self.gaps or kind.gaps).times(self.rate_per_s or kind.rate_per_s, self.duration_s, rng)
        seats = rng.integers(agents, size=len(times)).tolist()
        contexts = (self.context_tokens or kind.context_tokens).draw(len(times), rng).tolist()
        outputs = (self.output_tokens or kind.output_tokens).draw(len(times), rng).tolist()
        lengths: Iterator[Lengths | None] = map(Lengths, contexts, outputs) if self.sized else iter([None] * len(times))
        rows = zip(times, seats, lengths, strict=True)
        return [Arrival(number, agent, at_s, -1, size) for number, (at_s, agent, size) in enumerate(rows)]


def weibull_shape(cv: float) -> float:
    """The shape of a Weibull distribution with this coefficient of variation, by bisection."""

    def excess(shape: float) -> float:
        # In logarithms: for small shapes, gamma functions leave the range of floats.
        return math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape) - math.log1p(cv * cv)

    low, high = 0.05, 100.0
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.sqrt(low * high)
