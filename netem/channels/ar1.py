"""The 5G scenarios of the journal version: first-order autoregression with outages."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from netem.channels.base import MIN_CHANNEL_MBPS, Channel, RateChange, preset_in_schema, with_preset
from netem.wire import MAX_RATE_MBPS

# mean, std, min, max (Mbit/s), rho, outage probability, outage rate (Mbit/s)
PUBLISHED: dict[str, dict[str, float]] = {
    name: dict(zip(("mean", "std", "min", "max", "rho", "outage_probability", "outage_mbps"), row, strict=True))
    for name, row in {
        "urban_mmwave": (200, 150, 2, 800, 0.85, 0.05, 3),
        "urban_sub6": (60, 30, 5, 150, 0.90, 0.02, 5),
        "suburban_mixed": (80, 50, 3, 300, 0.88, 0.03, 4),
        "vehicular": (50, 60, 1, 400, 0.70, 0.10, 2),
    }.items()
}


class Ar1Channel(Channel):
    """x <- rho*x + (1-rho)*mean + Normal(0, std*sqrt(1-rho^2)), clamped to [min, max], every `step_s` seconds.

    Before each step an outage is drawn; in an outage the state *becomes* the outage rate. Starts at the mean and draws
    from `numpy.random.RandomState(seed)`, both as published. Give a published `scenario` by name, or every parameter.
    """

    model_config = ConfigDict(json_schema_extra=preset_in_schema("scenario", PUBLISHED))

    kind: Literal["ar1"] = "ar1"
    scenario: str | None = Field(default=None, description=f"one of {', '.join(PUBLISHED)}")
    step_s: float = Field(default=1.0, gt=0, description="the rate changes so often")
    mean: float = Field(gt=0, le=MAX_RATE_MBPS, description="the long-term mean, Mbit/s")
    std: float = Field(ge=0, description="standard deviation, Mbit/s")
    min: float = Field(ge=MIN_CHANNEL_MBPS, description="the least rate outside outages, Mbit/s")
    max: float = Field(le=MAX_RATE_MBPS, description="the greatest rate, Mbit/s")
    rho: float = Field(ge=0, lt=1, description="correlation of successive rates")
    outage_probability: float = Field(default=0.0, ge=0, le=1, description="per step")
    outage_mbps: float = Field(
        default=MIN_CHANNEL_MBPS, ge=MIN_CHANNEL_MBPS, le=MAX_RATE_MBPS, description="the rate in an outage"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_scenario(cls, data: Any) -> Any:
        return with_preset(data, "scenario", PUBLISHED)

    @model_validator(mode="after")
    def _ordered(self) -> "Ar1Channel":
        if not self.min <= self.mean <= self.max:
            raise ValueError(f"min <= mean <= max must hold, not {self.min:g}, {self.mean:g}, {self.max:g}")
        return self

    def changes_within(self, end_s: float) -> float:
        return end_s / self.step_s

    def play(self, seed: int) -> Iterator[RateChange]:
        rng = np.random.RandomState(seed)
        x, step = self.mean, 0
        noise = self.std * np.sqrt(1 - self.rho**2)
        while True:
            if rng.random() < self.outage_probability:
                x = self.outage_mbps
            else:
                x = self.rho * x + (1 - self.rho) * self.mean + rng.normal(0, noise)
                x = float(min(max(x, self.min), self.max))
            yield RateChange(step * self.step_s, x)
            step += 1
