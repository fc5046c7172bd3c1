"""A channel whose rate never changes."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from netem.channels.base import MIN_CHANNEL_MBPS, Channel, RateChange
from netem.wire import MAX_RATE_MBPS


class ConstantChannel(Channel):
    """`mbps` for ever."""

    kind: Literal["constant"] = "constant"
    mbps: float = Field(ge=MIN_CHANNEL_MBPS, le=MAX_RATE_MBPS, description="the rate")

    def play(self, seed: int) -> Iterator[RateChange]:
        yield RateChange(0.0, self.mbps)
