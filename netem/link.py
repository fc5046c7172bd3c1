"""The interface of a link, which the kernel link and the paced link both implement."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

# Bounds how far a sender can be ahead of its link. The kernel doubles this number and counts its own overhead against
# it, so about 100 KB of payload fit: 4 ms at 200 Mbit/s, enough to bridge a busy Python process.
SEND_BUFFER_BYTES = 1 << 17

CongestionControl = Literal["reno", "cubic", "bbr"]


class LinkError(Exception):
    """The link can't fulfil a request; the message is for the client."""


@dataclass(frozen=True)
class AgentCounters:
    """One agent's traffic since the start, in both hops: bytes of Ethernet frames, acknowledgements included."""

    hop1_bytes: int
    hop1_packets: int
    hop2_bytes: int
    hop2_packets: int
    hop2_dropped_packets: int
    hop2_backlog_bytes: int


class Link(Protocol):
    """A link between agents and workers, both numbered from 0; rates are link-layer Mbit/s."""

    def listen(self, worker: int) -> socket.socket:
        """A listening socket for `worker`. Raises LinkError while an earlier one is still open."""
        ...

    def connect(self, agent: int, worker: int) -> socket.socket:
        """A non-blocking socket that is connecting to `worker`; writable once connected. Raises LinkError."""
        ...

    def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        """Change the grants of these agents (Mbit/s); unchanged ones cost nothing. Raises LinkError."""
        ...

    def set_connected(self, agent: int, connected: bool) -> None:
        """Cut an agent's link, so that nothing passes in either direction, or restore it. Raises LinkError."""
        ...

    def set_channel(self, mbps: float) -> None:
        """Change the rate of the shared hop (Mbit/s)."""
        ...

    def counters(self) -> tuple[list[AgentCounters], int]:
        """One entry for each agent, and the number of packets that bypassed the shaping (0 unless it is broken)."""
        ...

    def used_bytes(self) -> int:
        """Bytes of Ethernet frames that all agents together have sent through the shared hop."""
        ...

    def tick(self) -> float | None:
        """Do the periodic work; returns seconds until the next call is due, None if none is."""
        ...
