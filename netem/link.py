"""What both links, the kernel's and the paced one, can do for the helper's clients."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

# Bounds what a sender can be ahead of its link. The kernel doubles it and counts its own overhead against it, so about
# 100 KB of payload fit: 4 ms at 200 Mbit/s, enough to bridge a busy Python process.
SEND_BUFFER_BYTES = 1 << 17


class LinkError(Exception):
    """A request that this link can't fulfil; the text is for the client."""


@dataclass(frozen=True)
class AgentCounters:
    """What one agent sent since the start: bytes of Ethernet frames, in both hops. Acknowledgements included."""

    hop1_bytes: int
    hop1_packets: int
    hop2_bytes: int
    hop2_packets: int
    hop2_dropped_packets: int
    hop2_backlog_bytes: int


class Link(Protocol):
    """Agents and workers are numbered from 0; rates are link-layer Mbit/s."""

    def listen(self, worker: int) -> socket.socket:
        """A listening socket for `worker`. Raises LinkError while an earlier one is still open."""
        ...

    def connect(self, agent: int, worker: int) -> socket.socket:
        """A non-blocking socket on its way to `worker`; writable once connected. Raises LinkError."""
        ...

    def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        """Change the grants of these agents; equal ones are left alone."""
        ...

    def set_channel(self, mbps: float) -> None:
        """Change the shared rate."""
        ...

    def counters(self) -> tuple[list[AgentCounters], int]:
        """One entry for each agent, and the packets that got past the shaping (always 0, or something is wrong)."""
        ...

    def used_bytes(self) -> int:
        """Bytes of Ethernet frames that went through the shared hop so far, of all agents together."""
        ...

    def tick(self) -> float | None:
        """Do what is due; seconds until something is due again, None if nothing is."""
        ...
