"""Observes a run through the files that it writes, while it is live and after it has ended or was cut off."""

import math
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from agents.arrivals import ArrivalTraceError
from agents.record import Status
from allocator.policies import POLICIES
from cluster.monitor.snapshot import CUT_OFF, ENDED, RUNNING, STARTING, AgentView, RunSnapshot, TurnView
from cluster.run_folder import folder as run_folder
from cluster.run_folder.jsonl import Tail
from cluster.scenario.schema import Scenario
from models.profiles import ProfileError
from reports import files
from reports.metrics import attainment
from reports.schema import RunFacts

WINDOW_S = 60.0
MAX_POINTS = 300
MAX_EVENTS = 20
STATUSES = tuple(str(status) for status in Status)
POINT = ("at_s", "channel_mbps", "estimate_mbps", "used_mbps", "in_flight")
RECORD = ("agent_id", "status", "mode", "latency_ms", "deadline_ms", "grant_mbps", "estimate_mbps")


@dataclass(slots=True)
class AgentState:
    """One agent in the current turn: its latest record, and how many of its requests met their deadline."""

    status: str = ""
    mode: str = ""
    latency_ms: float | None = None
    deadline_ms: float | None = None
    grant_mbps: float | None = None
    estimate_mbps: float | None = None
    met: int = 0
    ended: int = 0

    def take(self, record: dict[str, Any]) -> None:
        """Account for a request that has ended."""
        self.ended += 1
        self.met += record["status"] == Status.MET
        self.status = str(record["status"])
        self.mode = str(record.get("mode") or "")
        self.latency_ms = _number(record.get("latency_ms"))
        self.deadline_ms = _number(record.get("deadline_ms"))
        self.grant_mbps = _number(record.get("grant_mbps"))
        self.estimate_mbps = _number(record.get("estimate_mbps"))


class TurnState:
    """One allocator's turn, read from its journals."""

    def __init__(self, run_dir: Path, name: str, policy: str, agents: int) -> None:
        self.name = name
        self.policy = policy
        self.issued = 0
        self.counts: Counter[str] = Counter()
        self.agents = [AgentState() for _ in range(agents)]
        self.latest: dict[str, Any] = {}
        self.points: deque[list[float | None]] = deque()
        self._folder = files.turn_journal(run_dir, name)
        self._hosts: dict[Path, Tail] = {}
        self._timeline = Tail(self._folder / files.TURN_TIMELINE)

    @property
    def begun(self) -> bool:
        """Whether the turn has or had journals."""
        return bool(self.issued or self.counts or self.latest) or self._folder.is_dir()

    def follow(self) -> None:
        """Read the entries since the last call."""
        for path in self._folder.glob(files.TURN_REQUESTS):
            for entry in self._hosts.setdefault(path, Tail(path)).objects():
                if "issued" in entry:
                    self.issued += 1
                else:
                    self._ended(entry)
        for line in self._timeline.objects():
            if (at_s := _number(line.get("at_s"))) is None:
                continue
            self.latest = _finite(line)
            self.points.append([_number(line.get(key)) for key in POINT])
            while len(self.points) > 1 and (self.points[0][0] or 0.0) <= at_s - WINDOW_S:
                self.points.popleft()

    def replace(self, rows: pd.DataFrame) -> None:
        """Recount from the turn's rows of the complete ledger, in case journals were removed before they were read."""
        self.issued, self.counts = len(rows), Counter()
        self.agents = [AgentState() for _ in self.agents]
        for values in rows.itertuples(index=False, name=None):
            self._ended(dict(zip(RECORD, values, strict=True)))

    def _ended(self, record: dict[str, Any]) -> None:
        status, agent_id = record.get("status"), record.get("agent_id")
        if status in STATUSES and isinstance(agent_id, int) and 0 <= agent_id < len(self.agents):
            self.counts[str(status)] += 1
            self.agents[agent_id].take(record)

    def view(self, planned: int | None) -> TurnView:
        """The turn's counts; `planned` is the number of requests in a turn, None if unknown."""
        ended = self.counts.total()
        return TurnView(
            name=self.name,
            policy=self.policy,
            planned=planned,
            issued=max(self.issued, ended),  # an end may be read before its issue, from another file
            ended=ended,
            met=self.counts[Status.MET],
            late=self.counts[Status.LATE],
            rejected=self.counts[Status.REJECTED],
            failed=self.counts[Status.FAILED],
            compliance=attainment(self.counts[Status.MET], ended),
        )


class RunWatcher:
    """Reads a growing run folder. It writes nothing, so it can't disturb the run.

    Not thread-safe.
    """

    def __init__(self, run_dir: Path) -> None:
        """Raises RunFolderError if `run_dir` isn't a run folder."""
        self._run_dir = run_dir.resolve()
        if not (self._run_dir / files.SCENARIO).is_file():
            raise run_folder.RunFolderError(f"{run_dir} is not a run folder: it has no {files.SCENARIO}")
        self._facts: RunFacts | None = None
        self._scenario: Scenario | None = None
        self._planned: int | None = None
        self._profiles: list[str] = []
        self._policies: list[str] = []
        self._turns: list[TurnState] = []
        self._events_file = Tail(self._run_dir / files.EVENTS)
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._ended = False

    def snapshot(self) -> RunSnapshot:
        """The present state of the run.

        Raises:
            RunFolderError: the folder's `run.json` or `scenario.yaml` is invalid.
        """
        if self._scenario is None and (self._run_dir / files.RUN).exists():
            self._begin(*run_folder.read(self._run_dir))
        alive = self._alive()  # before checking for the summary, or a run that ends meanwhile seems cut off
        if not self._ended and self._scenario and (self._run_dir / files.SUMMARY).exists():
            self._ended = True
            self._follow()  # read the remaining journals: the ledger has no timeline
            self._read_ledger()
        elif not self._ended:
            self._follow()
        return self._shown(alive)

    def _begin(self, facts: RunFacts, scenario: Scenario) -> None:
        self._facts, self._scenario = facts, scenario
        self._profiles = [group.profile for group in scenario.agents.groups for _ in range(group.count)]
        self._policies = list(dict.fromkeys([*scenario.policies, *POLICIES]))
        self._turns = [
            TurnState(self._run_dir, each.name, each.policy, len(self._profiles)) for each in scenario.allocators
        ]
        try:
            self._planned = len(scenario.schedule())
        except (ArrivalTraceError, ProfileError):
            self._planned = None  # a trace or profile file is gone; the run has already read it

    def _alive(self) -> bool:
        return self._facts is None or run_folder.is_running(self._facts)

    def _follow(self) -> None:
        for turn in self._turns:
            turn.follow()
        self._events.extend(_finite(event) for event in self._events_file.objects())

    def _read_ledger(self) -> None:
        try:
            ledger = pd.read_parquet(self._run_dir / files.LEDGER, columns=["allocator", "request_id", *RECORD])
        except (OSError, ValueError):
            return  # damaged: keep the counts from the journals
        by_turn = dict(list(ledger.sort_values("request_id").groupby("allocator")))
        for turn in self._turns:
            if turn.name in by_turn:
                turn.replace(by_turn[turn.name][list(RECORD)])

    def _shown(self, alive: bool) -> RunSnapshot:
        begun = [turn for turn in self._turns if turn.begun]
        now = begun[-1] if begun else None
        scenario, facts = self._scenario, self._facts
        latest = now.latest if now else {}
        return RunSnapshot(
            run=self._run_dir.name,
            scenario=scenario.name if scenario else "",
            description=scenario.description if scenario else "",
            engine=facts.engine if facts else "",
            state=self._state(alive, bool(begun)),
            allocators=[turn.name for turn in self._turns],
            allocator=now.name if now else None,
            at_s=latest.get("at_s"),
            deadline_ms=latest.get("deadline_ms", scenario.deadline_ms if scenario else None),
            policies=self._policies,
            workers=scenario.cloud.workers if scenario else 0,
            timeline=latest,
            points=_thinned(now.points) if now else [],
            agents=self._agents(now or self._turns[0]) if self._turns else [],  # known before the first turn begins
            turns=[turn.view(self._planned) for turn in self._turns],
            events=list(self._events),
        )

    def _state(self, alive: bool, begun: bool) -> str:
        if self._ended:
            return ENDED
        if not alive:
            return CUT_OFF
        return RUNNING if begun else STARTING

    def _agents(self, turn: TurnState) -> list[AgentView]:
        grants, paused = (
            found if isinstance(found := turn.latest.get(key), list) else [] for key in ("grants_mbps", "paused")
        )
        return [
            AgentView(
                id=number,
                profile=profile,
                grant_mbps=grants[number] if number < len(grants) else agent.grant_mbps,
                paused=number in paused,
                mode=agent.mode,
                estimate_mbps=agent.estimate_mbps,
                status=agent.status,
                latency_ms=agent.latency_ms,
                deadline_ms=agent.deadline_ms,
                met=agent.met,
                ended=agent.ended,
            )
            for number, (profile, agent) in enumerate(zip(self._profiles, turn.agents, strict=True))
        ]


def newest(runs: Path = Path("runs")) -> Path:
    """The most recently started run in a folder.

    Raises:
        RunFolderError: there is none.
    """
    begun = [(path.stat().st_mtime, path.parent) for path in runs.glob(f"*/{files.SCENARIO}")]
    if not begun:
        raise run_folder.RunFolderError(f"no run folder in {runs}/; name one, or start a run first")
    return max(begun)[1]


def _thinned(points: deque[list[float | None]]) -> list[list[float | None]]:
    """At most MAX_POINTS points, evenly spaced, including the last."""
    stride = -(-len(points) // MAX_POINTS) or 1
    return list(points)[::-1][::stride][::-1]


def _number(value: Any) -> float | None:
    """A finite number or None: standard JSON has no NaN or infinity, though Python writes and reads both."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return _number(value) if isinstance(value, float) else value
