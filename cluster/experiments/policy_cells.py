"""The cells of `scout bench policies`: uplinks x workloads x sets of modes x cloud load x loss."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agents.arrivals import ArrivalTraceError
from agents.arrivals.generated import KINDS
from agents.arrivals.workload import WorkloadFile
from allocator.policies import make_policy
from allocator.policies.static import Static
from cluster.scenario.schema import Scenario
from cluster.scenario.shipped import CONFIGS
from cluster.scenario.yaml_document import Document, DocumentError
from models.profiles import load_profile
from netem.channels.cellular import CELLS
from netem.channels.trace import TraceChannel, TraceError
from reports.schema import PolicyCell

PROFILE = "measured/qwen2.5-7b"
AGENTS, WORKERS = 8, 2
DEADLINE_MS = 5000.0
CACHES = ("full", "int8", "mixed_int4", "int4")
LOADS, QUICK_LOADS = (0.1, 0.9), (0.5,)
LOSSES, QUICK_LOSSES = (0.0, 0.1), (0.0,)  # percent, upward
ROUNDING = 1e-9
DELAY_MS = 20.0  # each way, where packets are lost
UPLINKS = (*CELLS, "trace:lte_driving")
QUICK_UPLINKS = ("lte_driving", "nr_mmwave")
WORKLOADS = ("chat", "code")


@dataclass(frozen=True)
class Source:
    """An uplink or a workload: one that ships with the project, by its name, or a user's file."""

    name: str
    path: Path | None = None


@dataclass(frozen=True)
class Plan:
    """All runs of the bench.

    Attributes:
        files: workloads that were read, by name: (requests a second, seconds).
    """

    policies: list[str]
    cells: list[PolicyCell]
    seeds: list[int]
    duration_s: float
    uplinks: Mapping[str, Source]
    workloads: Mapping[str, Source]
    files: Mapping[str, tuple[float, float]]

    def scenario(self, cell: PolicyCell, seed: int) -> Scenario:
        """What is run for one cell and seed. Raises DocumentError."""
        return Scenario.from_document(Document.of(self._data(cell, seed), Path("policies")))

    def _data(self, cell: PolicyCell, seed: int) -> dict[str, Any]:
        modes = _modes(cell.prompts)
        lossy = {"up": {"delay_ms": DELAY_MS, "loss": {"percent": cell.loss_percent}}, "down": {"delay_ms": DELAY_MS}}
        return {
            "name": "policies",
            "seed": seed,
            "deadline_ms": DEADLINE_MS,
            "modes": modes,
            "allocators": _serving(self.policies, modes),
            "uplink": {"channel": self._channel(cell, seed), **({"shared": lossy} if cell.loss_percent else {})},
            "arrivals": self._arrivals(cell, seed),
            "agents": {"groups": [{"profile": PROFILE, "count": AGENTS}]},
            "cloud": {"workers": WORKERS, "queue_limit": 1000},
        }

    def _channel(self, cell: PolicyCell, seed: int) -> dict[str, Any]:
        """The cell's channel; a trace begins elsewhere for each seed."""
        source = self.uplinks[cell.uplink]
        if source.path is None and source.name in CELLS:
            return {"kind": "cellular", "cell": source.name}
        trace = _trace(source)
        begin_s = self.seeds.index(seed) * self.duration_s % trace.length_s
        changes = trace.until(seed, begin_s + self.duration_s + 4 * DEADLINE_MS / 1e3)
        before = [change.mbps for change in changes if change.at_s <= begin_s]
        steps = [[0.0, before[-1]], *([c.at_s - begin_s, c.mbps] for c in changes if c.at_s > begin_s)]
        return {"kind": "steps", "steps": steps}

    def _arrivals(self, cell: PolicyCell, seed: int) -> dict[str, Any]:
        """Requests of the profile's own lengths, as many a second as the cell's load wants.

        A file is thinned, and then played faster; each seed has a window of its own.
        """
        wanted_per_s = cell.cloud_load * WORKERS / prompt_s()
        source = self.workloads[cell.workload]
        if source.path is None:
            like = {"kind": "generated", "like": source.name, "lengths": "profile"}
            return like | {"rate_per_s": wanted_per_s, "duration_s": self.duration_s}
        per_s, length_s = self.files[cell.workload]
        every = max(1, int(per_s / wanted_per_s))
        speed = wanted_per_s * every / per_s
        window_s = self.duration_s * speed
        needed_s = window_s * len(self.seeds)
        if needed_s > length_s * (1 + ROUNDING):
            runs = f"{len(self.seeds)} seeds of {self.duration_s:g} s at a cloud load of {cell.cloud_load:g}"
            raise DocumentError(
                f"--workload {source.path}: {length_s:,.1f} s of requests; {runs} need {needed_s:,.1f}: "
                "fewer --seeds, or a shorter --duration"
            )
        start_s = self.seeds.index(seed) * length_s / len(self.seeds)
        window = {"start_s": start_s, "duration_s": window_s, "every": every, "speed": speed}
        return {"kind": "workload", "path": str(source.path), "lengths": "profile", **window}


def plan(
    policies: Sequence[str],
    uplinks: Sequence[str] | None,
    workloads: Sequence[str] | None,
    seeds: int,
    duration_s: float,
    quick: bool,
) -> Plan:
    """Every combination that any of the policies can serve.

    Args:
        uplinks, workloads: names of shipped ones, or files; None for all that ship.
        seeds: runs of each cell.

    Raises:
        DocumentError: a name or a file is wrong; the message says which and what there is.
    """
    ups = _sources(uplinks or (QUICK_UPLINKS if quick else UPLINKS), UPLINKS, "uplink")
    works = _sources(workloads or WORKLOADS, tuple(KINDS), "workload")
    for source in ups.values():
        if source.path is not None:
            _trace(source)
    files = {name: _read(source.path) for name, source in works.items() if source.path is not None}
    for name in policies:
        try:
            make_policy(name)
        except ValueError as error:
            raise DocumentError(f"--policies: {error}") from None
    served = [prompts for prompts in (True, False) if _serving(policies, _modes(prompts))]
    if not served:
        raise DocumentError(f"--policies: none of {', '.join(policies)} can serve the modes of any cell")
    cells = [
        PolicyCell(uplink=uplink, workload=workload, prompts=prompts, cloud_load=load, loss_percent=loss)
        for uplink, workload, prompts, load, loss in itertools.product(
            ups, works, served, QUICK_LOADS if quick else LOADS, QUICK_LOSSES if quick else LOSSES
        )
    ]
    planned = Plan(list(policies), cells, list(range(1, seeds + 1)), duration_s, ups, works, files)
    seen: set[object] = set()
    for cell in cells:  # everything that cells differ in once: what is wrong with it shows before anything runs
        parts = {("up", cell.uplink), ("work", cell.workload, cell.cloud_load), cell.prompts, cell.loss_percent}
        if not parts <= seen:
            planned.scenario(cell, planned.seeds[0])
        seen |= parts
    return planned


def prompt_s() -> float:
    """Worker time of one prompt."""
    entry = next(entry for mode, entry in load_profile(PROFILE).modes.items() if str(mode) == "prompt")
    return (entry.cloud_prefill_ms + entry.decode_ms) / 1e3


def _modes(prompts: bool) -> list[str]:
    return [*CACHES, *(["prompt"] if prompts else []), "local"]


def _serving(policies: Sequence[str], modes: Sequence[str]) -> list[str]:
    """The policies that can serve these modes: `prompt_only` needs prompts."""
    made = {name: make_policy(name) for name in policies}
    return [name for name, policy in made.items() if not isinstance(policy, Static) or str(policy.mode) in modes]


def _sources(given: Sequence[str], shipped: Sequence[str], what: str) -> dict[str, Source]:
    """By the names that cells use. Raises DocumentError: neither a file nor shipped, or twice."""
    found: dict[str, Source] = {}
    for each in given:
        path = Path(each)
        if each not in shipped and not path.is_file():
            raise DocumentError(f"--{what} {each}: no such file, nor one of {', '.join(shipped)}")
        source = Source(each) if each in shipped else Source(path.stem, path.resolve())
        if source.name in found:
            raise DocumentError(f"--{what} {each}: another one is called {source.name}; rename one of the files")
        found[source.name] = source
    return found


def _trace(source: Source) -> TraceChannel:
    """Raises DocumentError: the file is no trace."""
    path = source.path or CONFIGS / "traces" / f"{source.name.removeprefix('trace:')}.csv"
    try:
        return TraceChannel.model_validate({"kind": "trace", "path": path})
    except (TraceError, ValidationError) as error:
        raise DocumentError(f"--uplink {error}") from None


def _read(path: Path) -> tuple[float, float]:
    """A workload's requests a second, and how long they last. Raises DocumentError: the file is no workload."""
    try:
        found = WorkloadFile.model_validate({"kind": "workload", "path": path, "lengths": "profile"})
    except (ArrivalTraceError, ValidationError) as error:
        raise DocumentError(f"--workload {error}") from None
    span_s = found.requests[-1].at_s
    if span_s <= 0:
        raise DocumentError(f"--workload {path}: all requests come at once, so it has no rate")
    return len(found.requests) / span_s, span_s
