"""What delay and loss do to a simulated transfer, in means: the ways, TCP's slow start, its ceiling under loss.

Not reckoned with: jitter beyond its mean, reordering, bursts (a loss is its long-run share), timeouts after lost tails,
the way up of a hedge (only that of what follows it).
docs/links.md says how far that is from a kernel.
"""

import math
from dataclasses import dataclass

from netem.impairments import Impairment, Impairments
from netem.link import CongestionControl
from netem.wire import FRAME_BYTES, MAX_RATE_MBPS

INITIAL_WINDOW = 10  # segments, RFC 6928
LEAST_RTT_S = 1e-3  # of a path without delay: what queues and processes take
MOST_LOSS = 0.99  # beyond, a transfer never ends, and somebody has to give up on it
REACHED = 2.0  # a window grows to so many times what was in flight, and not beyond (RFC 7661)


@dataclass(frozen=True)
class AgentPath:
    """One agent's way to the cloud and back.

    Attributes:
        up_s, down_s: mean one-way delays.
        loss: share of segments that don't arrive, in the direction of the data.
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
        return cls(up_ms / 1e3, down_ms / 1e3, min(MOST_LOSS, 1 - kept))

    @property
    def impaired(self) -> bool:
        """Whether there is anything to reckon with."""
        return bool(self.up_s or self.down_s or self.loss)

    @property
    def rtt_s(self) -> float:
        """Round-trip time without queues."""
        return max(LEAST_RTT_S, self.up_s + self.down_s)

    def ceiling_mbps(self, congestion: CongestionControl) -> float:
        """What loss leaves of any rate, link-layer Mbit/s: MSS / RTT * sqrt(3 / 2 / p) (Mathis et al. 1997).

        That is Reno's, and here CUBIC's, which is never slower than it; BBR goes by the rate of arrivals instead.
        """
        if not self.loss or congestion == "bbr":
            return MAX_RATE_MBPS
        return min(MAX_RATE_MBPS, self.window_mbps(math.sqrt(1.5 / self.loss)))

    def window_mbps(self, segments: float) -> float:
        """The rate of a window of so many segments."""
        return segments * FRAME_BYTES * 8 / 1e6 / self.rtt_s


def mean_loss(way: Impairment) -> float:
    """The share of packets lost in the long run."""
    loss = way.loss
    if loss is None:
        return 0.0
    if loss.p is None or loss.r is None:
        return (loss.percent or 0.0) / 100
    bad = loss.p / (loss.p + loss.r) if loss.p + loss.r else 0.0
    return (bad * loss.loss_bad + (1 - bad) * loss.loss_good) / 100


class Window:
    """A connection's congestion window, as the rate that it allows; it outlasts a transfer.

    Args:
        path: of the connection.
    """

    def __init__(self, path: AgentPath, congestion: CongestionControl) -> None:
        self.path = path
        self._ceiling_mbps = path.ceiling_mbps(congestion)
        self.mbps = min(self._ceiling_mbps, path.window_mbps(INITIAL_WINDOW))

    @property
    def grows(self) -> bool:
        """Whether it is still in slow start."""
        return self.mbps < self._ceiling_mbps

    def grow(self, used_mbps: float) -> None:
        """A round trip has passed in which the transfer went at `used_mbps`."""
        if used_mbps * REACHED > self.mbps:
            self.mbps = min(self._ceiling_mbps, 2 * self.mbps)
