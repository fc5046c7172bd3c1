"""The state of a run at one moment, as the dashboard's page and the terminal show it."""

from dataclasses import dataclass
from typing import Any

STARTING, RUNNING, ENDED, CUT_OFF = "starting", "running", "ended", "cut off"


@dataclass(frozen=True, slots=True)
class AgentView:
    """An agent's latest request in the current turn, and how many of its requests met their deadline."""

    id: int
    profile: str
    mode: str
    grant_mbps: float | None
    estimate_mbps: float | None
    status: str
    latency_ms: float | None
    deadline_ms: float | None
    met: int
    ended: int
    paused: bool


@dataclass(frozen=True, slots=True)
class TurnView:
    """A turn's requests by status. `compliance` is the SLO attainment of ended requests, None before the first."""

    name: str
    policy: str
    planned: int | None
    issued: int
    ended: int
    met: int
    late: int
    rejected: int
    failed: int
    compliance: float | None


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """Numbers are finite or None; rates are in link-layer Mbit/s.

    Attributes:
        allocators: of all turns; allocator: of the current one, None before the first.
        deadline_ms: in force now; at_s: seconds since the turn's start.
        timeline: the turn's latest moment (`cluster.run_folder.timeline.Moment`), empty before the first.
        points: the turn's last minute: at_s, channel, estimate, used Mbit/s, requests in flight.
        events: the latest interventions and faults (`reports.schema.TimelineEvent`), as the run wrote them.
    """

    run: str
    scenario: str
    description: str
    engine: str
    state: str
    allocators: list[str]
    allocator: str | None
    at_s: float | None
    deadline_ms: float | None
    policies: list[str]
    workers: int
    timeline: dict[str, Any]
    points: list[list[float | None]]
    agents: list[AgentView]
    turns: list[TurnView]
    events: list[dict[str, Any]]
