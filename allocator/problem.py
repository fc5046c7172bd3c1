"""The allocation problem and its answer: plain values, no policy, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModeOption:
    """One way to serve a request.

    Attributes:
        mode: operating mode; `local` sends nothing.
        wire_bytes: bytes that cross the uplink, headers of every layer included.
        edge_ms: compute on the edge agent from the assignment on (encoding, or decoding for `local`).
        cloud_ms: compute on the cloud worker (prefill if any, decode), without queueing.
        quality: of the answer, if it is used.
    """

    mode: str
    wire_bytes: int
    edge_ms: float
    cloud_ms: float
    quality: float

    def latency_ms(self, mbps: float) -> float:
        """Predicted time from the assignment to the answer on a grant of `mbps` Mbit/s, empty queues assumed."""
        if self.wire_bytes == 0:
            return self.edge_ms + self.cloud_ms
        transfer_ms = self.wire_bytes * 8 / (mbps * 1e3) if mbps > 0 else float("inf")
        return self.edge_ms + transfer_ms + self.cloud_ms


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """An edge agent that may ask: its full cache is its weight in shares that go by size."""

    agent_id: int
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class Request:
    """A request that wants an assignment now, `time_left_ms` before its deadline (negative once that has passed)."""

    request_id: int
    agent_id: int
    time_left_ms: float
    options: tuple[ModeOption, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """What a policy may know: the *estimated* uplink, the agents, the requests to be assigned."""

    uplink_mbps: float
    agents: tuple[AgentInfo, ...]
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A policy's answer to one request: its mode and the grant its agent gets for it."""

    request_id: int
    mode: str
    grant_mbps: float
    predicted_ms: float


@dataclass(frozen=True, slots=True)
class Solution:
    """Assignments by request id, and the grants (Mbit/s) of agents by agent id; agents not named keep theirs."""

    assignments: Mapping[int, Assignment]
    grants_mbps: Mapping[int, float] = field(default_factory=dict)
