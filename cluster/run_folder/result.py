"""What a run leaves behind in memory; its requests are in journals (live) or in the turns (simulated)."""

from dataclasses import dataclass, field

from agents.record import Record
from allocator.problem import Gap
from cluster.run_folder.timeline import Timeline
from netem.helper.client import LinkCounters
from reports.schema import NodeUse

ChannelLog = list[tuple[float, float, float]]
"""(when the rate should have changed, when it did, Mbit/s), seconds since the turn's start."""


@dataclass(slots=True)
class Turn:
    """What one allocator's turn left behind.

    Attributes:
        gaps: the certificates of the turn's last allocator.
        mean_grants_mbps: of each request that the turn's last allocator has seen end, its agent's grant while it was on
            the wire.
        timeline: how things stood and what was done.
        stolen: the share of this machine's CPU time that its host gave to others meanwhile (live only).
        cut_short: why it ended before its schedule, though the run went on.
        issued, records: of a simulated run, whose requests are in no journal.
    """

    allocator: str
    timeline: Timeline = field(default_factory=Timeline)
    channel: ChannelLog = field(default_factory=list)
    solve_ms: list[float] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    mean_grants_mbps: dict[int, float] = field(default_factory=dict)
    stolen: float = 0.0
    cut_short: str = ""
    issued: set[int] = field(default_factory=set)
    records: list[Record] = field(default_factory=list)


@dataclass(slots=True)
class RunResult:
    """What a run left behind. `problems` is empty after an undisturbed one.

    Attributes:
        link: everything sent on the link (live only).
        nodes: those beside the station; relay: what its relay counted (live only).
        memory_mb: the most that each actor used (live only), by kind of actor.
    """

    turns: list[Turn] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ready_s: float = 0.0
    workers: list[dict[str, int]] = field(default_factory=list)
    link: LinkCounters | None = None
    nodes: list[NodeUse] = field(default_factory=list)
    relay: dict[str, int] = field(default_factory=dict)
    memory_mb: dict[str, list[dict[str, float]]] = field(default_factory=dict)
