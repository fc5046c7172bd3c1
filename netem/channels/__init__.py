"""Channels: how the uplink's true bandwidth changes over time.

Each channel is one small pydantic class in one file; add yours here and every registry test runs on it.
"""

from typing import Annotated

from pydantic import Field

from netem.channels.ar1 import Ar1Channel
from netem.channels.base import MIN_RATE_MBPS, Channel, RateChange
from netem.channels.cellular import CellularChannel
from netem.channels.constant import ConstantChannel
from netem.channels.markov import MarkovChannel
from netem.channels.steps import StepsChannel
from netem.channels.trace import TraceChannel

CHANNELS: dict[str, type[Channel]] = {
    "constant": ConstantChannel,
    "steps": StepsChannel,
    "markov": MarkovChannel,
    "ar1": Ar1Channel,
    "cellular": CellularChannel,
    "trace": TraceChannel,
}

AnyChannel = Annotated[
    ConstantChannel | StepsChannel | MarkovChannel | Ar1Channel | CellularChannel | TraceChannel,
    Field(discriminator="kind"),
]

__all__ = ["CHANNELS", "MIN_RATE_MBPS", "AnyChannel", "Channel", "RateChange"]
