"""Channels: how the uplink's true bandwidth changes over time.

Each channel is one small pydantic class in one file. Add yours to `AnyChannel`, and every registry test runs on it.
"""

from typing import Annotated, get_args

from pydantic import Field

from netem.channels.ar1 import Ar1Channel
from netem.channels.base import MIN_CHANNEL_MBPS, Channel, RateChange
from netem.channels.cellular import CellularChannel
from netem.channels.constant import ConstantChannel
from netem.channels.markov import MarkovChannel
from netem.channels.steps import StepsChannel
from netem.channels.trace import TraceChannel

AnyChannel = Annotated[
    ConstantChannel | StepsChannel | MarkovChannel | Ar1Channel | CellularChannel | TraceChannel,
    Field(discriminator="kind"),
]
CHANNELS: dict[str, type[Channel]] = {
    channel.model_fields["kind"].default: channel for channel in get_args(get_args(AnyChannel)[0])
}

__all__ = ["CHANNELS", "MIN_CHANNEL_MBPS", "AnyChannel", "Channel", "RateChange"]
