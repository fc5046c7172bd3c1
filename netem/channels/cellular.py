"""Synthetic cellular rates on a millisecond scale: shadowing, fast fading and outages. Not measured anywhere."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from netem.channels.base import MIN_CHANNEL_MBPS, Channel, RateChange, preset_in_schema, with_preset
from netem.wire import MAX_RATE_MBPS

# median and maximum (Mbit/s); shadowing (dB, s); fading (dB, s); outages: mean interval (s), mean length (s), Mbit/s
CELLS: dict[str, dict[str, float]] = {
    name: dict(
        zip(
            (
                "median_mbps",
                "max_mbps",
                "shadowing_db",
                "shadowing_s",
                "fading_db",
                "fading_s",
                "outage_every_s",
                "outage_s",
                "outage_mbps",
            ),
            row,
            strict=True,
        )
    )
    for name, row in {
        "lte_walking": (20, 50, 2.0, 15.0, 1.0, 0.2, 120.0, 0.3, 0.5),
        "lte_driving": (12, 50, 3.0, 3.0, 1.5, 0.05, 30.0, 0.8, 0.2),
        "nr_midband": (60, 150, 1.5, 10.0, 1.0, 0.1, 90.0, 0.3, 2.0),
        "nr_mmwave": (200, 800, 2.5, 5.0, 1.5, 0.05, 12.0, 0.5, 2.0),
    }.items()
}


class CellularChannel(Channel):
    """median * 10^((shadowing + fading) / 10), at most `max_mbps`, every `step_s` seconds; in outages `outage_mbps`.

    Shadowing and fading are first-order Gauss-Markov processes in decibels whose autocorrelation falls to 1/e in
    `shadowing_s` and `fading_s` (for shadowing, the model of Gudmundson, "Correlation model for shadow fading in mobile
    radio systems", Electronics Letters 1991, at constant speed). Outages follow a two-state Markov chain. The
    parameters of a named `cell` are plausible assumptions, not measurements. Give a `cell`, or every parameter.
    """

    model_config = ConfigDict(json_schema_extra=preset_in_schema("cell", CELLS))

    kind: Literal["cellular"] = "cellular"
    cell: str | None = Field(default=None, description=f"one of {', '.join(CELLS)}")
    step_s: float = Field(default=0.02, ge=0.001, le=60, description="the rate changes so often")
    median_mbps: float = Field(ge=MIN_CHANNEL_MBPS, le=MAX_RATE_MBPS, description="without shadowing and fading")
    max_mbps: float = Field(ge=MIN_CHANNEL_MBPS, le=MAX_RATE_MBPS, description="the greatest rate")
    shadowing_db: float = Field(ge=0, le=30, description="standard deviation of the shadowing")
    shadowing_s: float = Field(gt=0, le=3600, description="in which its autocorrelation falls to 1/e")
    fading_db: float = Field(ge=0, le=30, description="standard deviation of the fading")
    fading_s: float = Field(gt=0, le=3600, description="in which its autocorrelation falls to 1/e")
    outage_every_s: float = Field(gt=0, le=1e6, description="mean time between outages")
    outage_s: float = Field(gt=0, le=3600, description="mean length of an outage")
    outage_mbps: float = Field(ge=MIN_CHANNEL_MBPS, le=MAX_RATE_MBPS, description="the rate in an outage")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_cell(cls, data: Any) -> Any:
        return with_preset(data, "cell", CELLS)

    @model_validator(mode="after")
    def _ordered(self) -> "CellularChannel":
        if not self.outage_mbps <= self.median_mbps <= self.max_mbps:
            raise ValueError(
                "outage_mbps <= median_mbps <= max_mbps must hold, not "
                f"{self.outage_mbps:g}, {self.median_mbps:g}, {self.max_mbps:g}"
            )
        return self

    def changes_within(self, end_s: float) -> float:
        return end_s / self.step_s

    def play(self, seed: int) -> Iterator[RateChange]:
        rng = np.random.default_rng(seed)
        waves = [(self.shadowing_db, self.shadowing_s), (self.fading_db, self.fading_s)]
        keeps = [math.exp(-self.step_s / lasts_s) for _, lasts_s in waves]
        levels = [db * rng.standard_normal() for db, _ in waves]
        outage_begins = 1 - math.exp(-self.step_s / self.outage_every_s)  # probabilities a step
        outage_ends = 1 - math.exp(-self.step_s / self.outage_s)
        out, step = False, 0
        while True:
            mbps = min(self.median_mbps * 10 ** (sum(levels) / 10), self.max_mbps)
            yield RateChange(step * self.step_s, self.outage_mbps if out else max(mbps, MIN_CHANNEL_MBPS))
            for number, ((db, _), keep) in enumerate(zip(waves, keeps, strict=True)):
                levels[number] = keep * levels[number] + db * math.sqrt(1 - keep**2) * rng.standard_normal()
            out = rng.random() >= outage_ends if out else rng.random() < outage_begins
            step += 1
