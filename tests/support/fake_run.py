"""A run folder that grows as a live run's does, for tests of what watches it."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from agents.record import FIELDS, Record, Status
from cluster.processes import started_at
from kvcache.modes import parse_mode
from reports import files
from reports.machine import describe_machine
from reports.schema import RunFacts


class FakeRun:
    """Writes what the driver, the hosts and the allocator write, when told to."""

    def __init__(self, run_dir: Path, agents: int = 4, profile: str = "measured/qwen2.5-7b", **changes: Any) -> None:
        self.dir = run_dir
        self.agents = agents
        self.records: list[tuple[str, Record]] = []
        self.profile = profile
        scenario: dict[str, Any] = {
            "name": "fake",
            "deadline_ms": 1500,
            "allocators": ["equal", "deadline"],
            "uplink": {"channel": {"kind": "constant", "mbps": 20}},
            "arrivals": {"kind": "synchronized", "rounds": 100, "period_s": 2},
            "agents": {"groups": [{"profile": profile, "count": agents}]},
        }
        run_dir.mkdir(parents=True)
        (run_dir / "scenario.yaml").write_text(yaml.safe_dump(scenario | changes))

    def begin(self, pid: int | None = None, **facts: Any) -> None:
        """As `finish.begin`; by default this process is the driver."""
        pid = pid or os.getpid()
        document = {"engine": "live", "base_dir": str(self.dir), "pid": pid, "pid_started": started_at(pid)}
        RunFacts(**describe_machine().model_dump() | document | facts).write(self.dir / "run.json")

    def issue(self, allocator: str, request_id: int) -> None:
        self.append(allocator, "host-0.jsonl", {"issued": request_id})

    def end(self, allocator: str, request_id: int, agent_id: int, status: Status, **values: Any) -> None:
        self.write(allocator, [self.record(request_id, agent_id, status, **values)])

    def record(self, request_id: int, agent_id: int, status: Status, **values: Any) -> Record:
        answered = status in (Status.MET, Status.LATE)
        latency_ms = (900.0 if status == Status.MET else 1900.0) if answered else math.nan
        defaults = {"mode": parse_mode("int8"), "latency_ms": latency_ms, "grant_mbps": 5.0, "estimate_mbps": 16.0}
        return Record(request_id, agent_id, self.profile, 0, 1.0, 1500.0, status, **(defaults | values))

    def write(self, allocator: str, records: list[Record]) -> None:
        self.records += [(allocator, record) for record in records]
        lines = "".join(json.dumps(record.entry()) + "\n" for record in records)
        self.append_text(allocator, "host-0.jsonl", lines)

    def tick(self, allocator: str, at_s: float, **values: Any) -> None:
        line = {
            "at_s": at_s,
            "channel_mbps": 20.0,
            "estimate_mbps": 16.1,
            "used_mbps": 14.9,
            "in_flight": 3,
            "waiting": 1,
            "cloud_ms": [310.0, 0.0],
            "policy": allocator,
            "deadline_ms": 1500,
            "paused": [],
            "grants_mbps": [5.0] * self.agents,
        }
        self.append(allocator, "timeline.jsonl", line | values)

    def event(self, allocator: str, at_s: float, text: str, kind: str = "intervention") -> None:
        entry = {"allocator": allocator, "at_s": at_s, "kind": kind, "text": text}
        with (self.dir / "events.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def append(self, allocator: str, name: str, entry: dict[str, Any]) -> None:
        self.append_text(allocator, name, json.dumps(entry) + "\n")

    def append_text(self, allocator: str, name: str, text: str) -> None:
        folder = files.turn_journal(self.dir, allocator)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("a") as file:
            file.write(text)

    def finish(self) -> None:
        """As `finish.finish`: ledger, summary, no journals."""
        rows = [(allocator, *record.entry().values()) for allocator, record in self.records]
        frame = pd.DataFrame(rows, columns=["allocator", *FIELDS])
        frame["status"] = frame.status.map(str)
        frame.to_parquet(self.dir / "ledger.parquet", index=False)
        (self.dir / "summary.json").write_text("{}")
        for path in (self.dir / "journal").rglob("*.jsonl"):
            path.unlink()
        for path in sorted((self.dir / "journal").rglob("*"), reverse=True):
            path.rmdir()
        (self.dir / "journal").rmdir()
