"""A mean-value model of TCP for simulated transfers: one-way delays, slow start, and the throughput limit under loss.

Not modelled: jitter beyond its mean, reordering, bursts (loss is its long-run rate), retransmission timeouts, and the
one-way delay of a hedge (only that of the payload after it). docs/links.md compares the model with a kernel.
"""

import math
from dataclasses import dataclass

from netem.impairments import Impairment, Impairments
from netem.link import CongestionControl
from netem.wire import FRAME_BYTES, MAX_RATE_MBPS

INITIAL_WINDOW = 10  # segments, RFC 6928
MIN_RTT_S = 1e-3  # of a path without delay: the time in queues and processes
MAX_LOSS = 0.99  # at a higher loss a transfer would never end
GROWTH_LIMIT = 2.0  # a window grows to at most this many times the amount in flight (RFC 7661)


@dataclass(frozen=True)
class AgentPath:
    """One agent's path to the cloud and back.

    Attributes:
        up_s, down_s: mean one-way delays.
        loss: share of segments lost in the direction of the data.
    """

    up_s: float = 0.0
    down_s: float = 0.0
    loss: float = 0.0

    @classmethod
    def of(cls, impairments: Impairments, agent: int) -> "AgentPath":
        """The path of an agent, over its own link and the shared one."""
        own, shared = impairments.of(agent), impairments.shared
        kept = (1 - mean_loss(own.up)) * (1 - mean_loss(shared.up))
        up_ms = own.up.delay_ms + shared.up.delay_ms
        down_ms = own.down.delay_ms + shared.down.delay_ms
        return cls(up_ms / 1e3, down_ms / 1e3, min(MAX_LOSS, 1 - kept))

    @property
    def impaired(self) -> bool:
        """Whether the path has any delay or loss."""
        return bool(self.up_s or self.down_s or self.loss)

    @property
    def rtt_s(self) -> float:
        """Round-trip time without queueing."""
        return max(MIN_RTT_S, self.up_s + self.down_s)

    def ceiling_mbps(self, congestion: CongestionControl) -> float:
        """The throughput limit under loss, in link-layer Mbit/s: MSS / RTT * sqrt(3 / 2 / p) (Mathis et al. 1997).

        The formula is for Reno, and used for CUBIC, which is never slower; BBR doesn't react to loss and has no limit.
        """
        if not self.loss or congestion == "bbr":
            return MAX_RATE_MBPS
        return min(MAX_RATE_MBPS, self.window_mbps(math.sqrt(1.5 / self.loss)))

    def window_mbps(self, segments: float) -> float:
        """The link-layer rate (Mbit/s) of a window of `segments`."""
        return segments * FRAME_BYTES * 8 / 1e6 / self.rtt_s


def mean_loss(way: Impairment) -> float:
    """The long-run share of packets lost."""
    loss = way.loss
    if loss is None:
        return 0.0
    if loss.p is None or loss.r is None:
        return (loss.percent or 0.0) / 100
    bad = loss.p / (loss.p + loss.r) if loss.p + loss.r else 0.0
    return (bad * loss.loss_bad + (1 - bad) * loss.loss_good) / 100


class Window:
    """A connection's congestion window, as the rate (Mbit/s) that it allows; it persists between transfers."""

    def __init__(self, path: AgentPath, congestion: CongestionControl) -> None:
        self.path = path
        self._ceiling_mbps = path.ceiling_mbps(congestion)
        self.mbps = min(self._ceiling_mbps, path.window_mbps(INITIAL_WINDOW))

    @property
    def grows(self) -> bool:
        """Whether it is still in slow start."""
        return self.mbps < self._ceiling_mbps

    def grow(self, used_mbps: float) -> None:
        """Grow after a round trip in which the transfer's rate was `used_mbps`."""
        if used_mbps * GROWTH_LIMIT > self.mbps:
            self.mbps = min(self._ceiling_mbps, 2 * self.mbps)
