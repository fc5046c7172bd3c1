"""How things stood in a turn, five times a second: channel, use, belief, queue, shares; and what was done to it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import pandas as pd

from allocator.online.service import Snapshot
from cluster.run_folder.jsonl import Tail, append
from cluster.scenario.events import EventKind
from reports import files

PERIOD_S = 0.2


@dataclass(slots=True)
class Moment:
    """How things stood at `at_s` seconds since the turn's start; rates are link-layer Mbit/s.

    Attributes:
        used_mbps: what went through the shared hop, mean since the moment before.
        in_flight, waiting, cloud_ms, estimate_mbps, grants_mbps: see `allocator.online.service.Snapshot`.
        policy, deadline_ms, paused: what holds now, whatever the scenario said.
    """

    at_s: float
    channel_mbps: float
    estimate_mbps: float
    used_mbps: float
    in_flight: int
    waiting: int
    cloud_ms: tuple[float, ...]
    grants_mbps: tuple[float, ...]
    policy: str
    deadline_ms: float
    paused: tuple[int, ...] = ()


@dataclass(slots=True)
class Event:
    """Something that was done to a turn, or befell it."""

    at_s: float
    kind: EventKind
    text: str


@dataclass(slots=True)
class Timeline:
    """A turn's moments and events, as they come.

    Attributes:
        journal: where each goes at once (live), so that others can watch and nothing is lost.
    """

    allocator: str = ""
    policy: str = ""
    deadline_ms: float = 0.0
    journal: Path | None = None
    moments: list[Moment] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    paused: set[int] = field(default_factory=set)
    channel_mbps: float = 0.0
    _bytes: float = 0.0
    _at_s: float = 0.0

    def take(self, at_s: float, used_bytes: float, seen: Snapshot) -> Moment:
        """Keep how things stand, and return it; `used_bytes` went through the shared hop so far."""
        elapsed_s = at_s - self._at_s
        used_mbps = (used_bytes - self._bytes) * 8 / 1e6 / elapsed_s if elapsed_s > 0 else 0.0
        self._bytes, self._at_s = used_bytes, at_s
        moment = Moment(
            round(at_s, 4),
            self.channel_mbps,
            round(seen.estimate_mbps, 4),
            round(used_mbps, 4),
            seen.in_flight,
            seen.waiting,
            tuple(round(ms, 1) for ms in seen.cloud_ms),
            tuple(round(mbps, 4) if mbps else 0.0 for mbps in seen.grants_mbps),  # of many, few send
            self.policy,
            self.deadline_ms,
            tuple(sorted(self.paused)),
        )
        self.moments.append(moment)
        if self.journal is not None:
            append(self.journal / files.TURN_TIMELINE, asdict(moment))
        return moment

    def happened(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)
        if self.journal is not None:  # <run>/journal/<allocator>
            append(self.journal.parents[1] / files.EVENTS, {"allocator": self.allocator, **asdict(event)})


def read_journal(run_dir: Path, folder: Path, allocator: str) -> Timeline:
    """The timeline of a turn whose driver was killed; a last line that was cut off is left out."""
    found = Timeline(allocator, "", 0.0)
    found.moments = [Moment(**entry) for entry in Tail(folder / files.TURN_TIMELINE).objects()]
    for entry in Tail(run_dir / files.EVENTS).objects():
        if entry.pop("allocator", None) == allocator:
            found.events.append(Event(**entry))
    return found


def write(run_dir: Path, timelines: Sequence[Timeline]) -> None:
    """All turns' moments in one file, and all events in another (which a live run has written already)."""
    names = [column.name for column in fields(Moment)]
    rows = [
        (each.allocator, *(getattr(moment, name) for name in names)) for each in timelines for moment in each.moments
    ]
    frame = pd.DataFrame(rows, columns=["allocator", *names])
    for name in ("cloud_ms", "grants_mbps", "paused"):
        frame[name] = frame[name].map(list)
    frame.to_parquet(run_dir / files.TIMELINE, index=False)
