"""How things stood in a turn, five times a second: channel, use, belief, queue, shares; and what was done to it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from allocator.online.service import Snapshot

PERIOD_S = 0.2
TIMELINE_FILE = "timeline.parquet"  # of a run that has ended
TIMELINE_JOURNAL = "timeline.jsonl"  # of a turn that is on, beside the journals of its requests
EVENTS_FILE = "events.jsonl"


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
    kind: Literal["intervention", "fault"]
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
            tuple(round(mbps, 4) for mbps in seen.grants_mbps),
            self.policy,
            self.deadline_ms,
            tuple(sorted(self.paused)),
        )
        self.moments.append(moment)
        if self.journal is not None:
            _append(self.journal / TIMELINE_JOURNAL, asdict(moment))
        return moment

    def happened(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)
        if self.journal is not None:  # <run>/journal/<allocator>
            _append(self.journal.parents[1] / EVENTS_FILE, {"allocator": self.allocator, **asdict(event)})


def read_journal(run_dir: Path, folder: Path, allocator: str) -> Timeline:
    """What a turn whose driver was killed left; a last line that was cut off is left out."""
    found = Timeline(allocator, "", 0.0)
    found.moments = [Moment(**entry) for entry in _entries(folder / TIMELINE_JOURNAL)]
    for entry in _entries(run_dir / EVENTS_FILE):
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
    frame.to_parquet(run_dir / TIMELINE_FILE, index=False)


def _append(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _entries(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
