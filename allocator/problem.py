"""The allocation problem and its answer: plain values, no policy, no clock.

Choose a mode for every request and a grant for everybody who sends, so that

- grants add up to at most the (estimated) uplink: a request that meets its deadline in a mode needs at least
  `wire_bytes * 8 / (time left - edge_ms - cloud_ms)`, a transfer in flight at least `bytes_left * 8 / due_in_ms`;
- cloud time suffices, where it is modelled: for every deadline d, the cloud work of the requests due by d is at most
  the time that the workers have until then, and nothing starts before the first worker is free;
- as much weight as possible meets its deadline, and after that the weighted quality of what does is highest.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from kvcache.modes import Mode

# Predicted times that miss a deadline by less than this share of it meet it: an exactly sufficient grant is sufficient.
ROUNDING = 1e-9

Unsaved = Literal["local", "late"]


@dataclass(frozen=True, slots=True)
class ModeOption:
    """One way to serve a request.

    Attributes:
        mode: operating mode.
        wire_bytes: bytes that cross the uplink, headers of every layer included.
        edge_ms: compute on the edge agent from the assignment on (encoding, or decoding for `local`).
        cloud_ms: compute on the cloud worker (prefill if any, decode), without queueing.
        quality: of the answer, if it is used.
        cloud_prefill_ms: part of `cloud_ms` that can't be shared with other requests of a batch.
        decoder: requests with an equal decoder can be decoded together.
    """

    mode: Mode
    wire_bytes: int
    edge_ms: float
    cloud_ms: float
    quality: float
    cloud_prefill_ms: float = 0.0
    decoder: Hashable = 0

    def latency_ms(self, mbps: float) -> float:
        """Predicted time from the assignment to the answer on a grant of `mbps` Mbit/s, empty queues assumed."""
        if self.wire_bytes == 0:
            return self.edge_ms + self.cloud_ms
        transfer_ms = self.wire_bytes * 8 / (mbps * 1e3) if mbps > 0 else float("inf")
        return self.edge_ms + transfer_ms + self.cloud_ms

    def least_mbps(self, time_left_ms: float) -> float:
        """The grant that is just enough for an answer within `time_left_ms`, empty queues assumed; inf if none is."""
        transfer_ms = time_left_ms - self.edge_ms - self.cloud_ms
        if self.wire_bytes == 0:
            return 0.0 if transfer_ms >= 0 else float("inf")
        return self.wire_bytes * 8 / (transfer_ms * 1e3) if transfer_ms > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """An edge agent that may ask: its full cache is its weight in shares that go by size."""

    agent_id: int
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose mode is still to be chosen.

    Attributes:
        time_left_ms: until its deadline (negative once that has passed), counted from when its mode's own work can
            begin: what the edge must do before that (`starts_in_ms`) is already taken off.
        weight: what meeting its deadline counts, and its quality.
        starts_in_ms: 0 if it asks now; else it has been announced, and its transfer begins no sooner than that.
    """

    request_id: int
    agent_id: int
    time_left_ms: float
    options: tuple[ModeOption, ...]
    weight: float = 1.0
    starts_in_ms: float = 0.0


class Transfer(NamedTuple):
    """A request in flight on the uplink: its mode is fixed, its grant may change.

    Attributes:
        bytes_left: wire bytes still to be carried, as far as the allocator can know.
        due_in_ms: when the cloud must have the last of them for an answer by the deadline.
    """

    request_id: int
    agent_id: int
    bytes_left: float
    due_in_ms: float
    weight: float = 1.0

    @property
    def least_mbps(self) -> float:
        """The grant that is just enough; inf once it is too late for any."""
        return self.bytes_left * 8 / (self.due_in_ms * 1e3) if self.due_in_ms > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Problem:
    """What a policy may know.

    Attributes:
        uplink_mbps: the *estimated* uplink.
        agents: all agents of the run, busy or not.
        requests: those whose mode is to be chosen.
        transfers: those in flight on the uplink.
        workers_free_in_ms: for each cloud worker, when it will have done what is already promised to it, inf if it is
            lost; None if cloud time is not modelled (as in the papers).
        unsaved: what becomes of a request that can't meet its deadline: answered on the edge (`local`, where it is
            offered), or late by the mode that sends least, on what the others leave.
    """

    uplink_mbps: float
    agents: tuple[AgentInfo, ...]
    requests: tuple[Request, ...]
    transfers: tuple[Transfer, ...] = ()
    workers_free_in_ms: tuple[float, ...] | None = None
    unsaved: Unsaved = "local"

    @property
    def cloud_free_in_ms(self) -> float:
        """When the first worker is free; 0 if cloud time is not modelled."""
        return max(0.0, min(self.workers_free_in_ms)) if self.workers_free_in_ms else 0.0

    def cloud_budget_ms(self, until_ms: float) -> float:
        """Worker time from now until then that isn't promised; inf if cloud time is not modelled."""
        if self.workers_free_in_ms is None:
            return float("inf")
        return sum(max(0.0, until_ms - max(0.0, free_in_ms)) for free_in_ms in self.workers_free_in_ms)


class Assignment(NamedTuple):
    """A policy's answer to one request: its mode, the grant for it, when it will be answered, and whether in time."""

    request_id: int
    mode: Mode
    grant_mbps: float
    predicted_ms: float
    meets: bool


@dataclass(frozen=True, slots=True)
class Solution:
    """Assignments by request id, and the grants (Mbit/s) of agents by agent id; agents not named keep theirs.

    An agent's grant is for all its requests and transfers together.
    """

    assignments: Mapping[int, Assignment]
    grants_mbps: Mapping[int, float] = field(default_factory=dict)
