"""Cellular-like rates on a millisecond scale: shadowing, fast fading and outages. Generated, not measured."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from netem.channels.base import MIN_RATE_MBPS, Channel, RateChange
from netem.wire import MAX_RATE_MBPS

# median and most Mbit/s; shadowing: dB, seconds; fading: dB, seconds; outages: seconds between, seconds long, Mbit/s
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
    radio systems", Electronics Letters 1991, at constant speed). Outages come and go as in a two-state Markov chain.
    The numbers of a named `cell` are ours: plausible, and measured nowhere. Give a `cell`, or every parameter.
    """

    kind: Literal["cellular"] = "cellular"
    cell: Literal["lte_walking", "lte_driving", "nr_midband", "nr_mmwave"] | None = None
    step_s: float = Field(default=0.02, ge=0.001, le=60)
    median_mbps: float = Field(ge=MIN_RATE_MBPS, le=MAX_RATE_MBPS)
    max_mbps: float = Field(ge=MIN_RATE_MBPS, le=MAX_RATE_MBPS)
    shadowing_db: float = Field(ge=0, le=30, description="standard deviation")
    shadowing_s: float = Field(gt=0, le=3600)
    fading_db: float = Field(ge=0, le=30, description="standard deviation")
    fading_s: float = Field(gt=0, le=3600)
    outage_every_s: float = Field(gt=0, le=1e6, description="mean time between outages")
    outage_s: float = Field(gt=0, le=3600, description="mean length of one")
    outage_mbps: float = Field(ge=MIN_RATE_MBPS, le=MAX_RATE_MBPS)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_cell(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("cell") in CELLS:
            return CELLS[data["cell"]] | data
        return data

    @model_validator(mode="after")
    def _ordered(self) -> "CellularChannel":
        if not self.outage_mbps <= self.median_mbps <= self.max_mbps:
            raise ValueError(
                "outage_mbps <= median_mbps <= max_mbps must hold, not "
                f"{self.outage_mbps:g}, {self.median_mbps:g}, {self.max_mbps:g}"
            )
        return self

    def play(self, seed: int) -> Iterator[RateChange]:
        rng = np.random.default_rng(seed)
        waves = [(self.shadowing_db, self.shadowing_s), (self.fading_db, self.fading_s)]
        keeps = [math.exp(-self.step_s / lasts_s) for _, lasts_s in waves]
        levels = [db * rng.standard_normal() for db, _ in waves]
        begins = 1 - math.exp(-self.step_s / self.outage_every_s)
        ends = 1 - math.exp(-self.step_s / self.outage_s)
        out, step = False, 0
        while True:
            mbps = min(self.median_mbps * 10 ** (sum(levels) / 10), self.max_mbps)
            yield RateChange(step * self.step_s, self.outage_mbps if out else max(mbps, MIN_RATE_MBPS))
            for number, ((db, _), keep) in enumerate(zip(waves, keeps, strict=True)):
                levels[number] = keep * levels[number] + db * math.sqrt(1 - keep**2) * rng.standard_normal()
            out = rng.random() >= ends if out else rng.random() < begins
            step += 1
