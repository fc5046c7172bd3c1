"""`scout compare`: the same scenario with many seeds, perhaps varied, every time all allocators on equal terms."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.experiments.bound import percent_bound
from cluster.run_folder import folder as run_folder
from cluster.scenario.explain import Where
from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import Document, DocumentError, where_of
from configs.yaml_text import YamlRefused, load_yaml
from reports import files
from reports.schema import ComparedRun, ComparisonRuns, Summary

MAX_RUNS = 10_000
OURS = {"seed": "seeds", "allocators": "allocators"}
"""Keys that a comparison sets itself, and the options that say how."""
RATE_ORACLE = {"policy": "deadline", "label": "rate_oracle", "estimator": {"kind": "oracle"}}
"""The near-exact policy that is told the channel's present rate: an estimator without error, which knows no future."""

Run = Callable[[Scenario, Path], Summary]


@dataclass(frozen=True)
class Sweep:
    """One key of the scenario and the values that it takes in turn."""

    where: Where
    values: tuple[Any, ...]

    @classmethod
    def parse(cls, text: str) -> "Sweep":
        """From `uplink.channel.mbps=10,20,50`; a number in the key is an index.

        Raises:
            DocumentError: not of this form.
        """
        key, equals, values = text.partition("=")
        if not equals or not key or not values:
            raise DocumentError(f"--sweep takes key=value,value,... such as uplink.channel.mbps=10,20, not {text!r}")
        try:
            parsed = tuple(load_yaml(value) for value in values.split(","))
        except YamlRefused as error:
            raise DocumentError(f"--sweep {key}: {values!r} are not values: {error.reason}") from None
        if key in OURS:
            raise DocumentError(f"--sweep {key}: that is what --{OURS[key]} is for")
        return cls.of(key, parsed)

    @classmethod
    def of(cls, key: str, values: Sequence[Any]) -> "Sweep":
        """Raises DocumentError: no values, or a key that a comparison sets itself."""
        if key in OURS:
            raise DocumentError(f"sweep {key}: that is what `{OURS[key]}` is for")
        if not values:
            raise DocumentError(f"sweep {key}: no values")
        for n, value in enumerate(values):
            if value in values[:n]:
                raise DocumentError(f"sweep {key}: {value} is there twice")
        return cls(where_of(key), tuple(values))

    @property
    def key(self) -> str:
        """As it was given."""
        return ".".join(map(str, self.where))


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison, in a folder of its own."""

    folder: str
    seed: int
    point: dict[str, Any]
    scenario: Scenario


@dataclass(frozen=True)
class Plan:
    """All runs, and which allocators are compared with one another; the others are for orientation."""

    compared: list[str]
    runs: list[PlannedRun]


def plan(document: Document, allocators: Sequence[Any] | None, seeds: int, sweeps: Sequence[Sweep]) -> Plan:
    """Every combination of the sweeps' values with as many seeds, from the scenario's own seed on.

    The order of allocators rotates from seed to seed, so that none always goes first. `local_only` and `equal` are
    added as floors and `rate_oracle` for orientation, where the scenario allows them.

    Raises:
        DocumentError: the scenario, or one of those that the sweeps make of it, is wrong; or too many runs.
    """
    base = Scenario.from_document(document, list(allocators) if allocators else None)
    number = seeds
    for sweep in sweeps:
        number *= len(sweep.values)
    if number > MAX_RUNS:
        raise DocumentError(f"{number} runs; there may be {MAX_RUNS}: fewer seeds, or fewer values to sweep")
    compared = [each.model_dump(mode="json", exclude_none=True) for each in base.allocators]
    runs = []
    for values in itertools.product(*(sweep.values for sweep in sweeps)):
        varied = document
        for sweep, value in zip(sweeps, values, strict=True):
            varied = varied.changed(sweep.where, value)
        point = {sweep.key: value for sweep, value in zip(sweeps, values, strict=True)}
        entries = compared + list(_references(varied, base))
        name = "_".join(f"{key}={value}" for key, value in point.items()).replace("/", "-")
        for index in range(seeds):
            turn = index % len(entries)
            seeded = varied.changed(("seed",), base.seed + index)
            seeded = seeded.changed(("allocators",), entries[turn:] + entries[:turn])
            folder = f"{name}/seed-{base.seed + index}" if name else f"seed-{base.seed + index}"
            runs.append(PlannedRun(folder, base.seed + index, point, Scenario.from_document(seeded)))
    return Plan(base.allocator_names, runs)


def _references(document: Document, base: Scenario) -> Iterator[dict[str, Any]]:
    for entry in ({"policy": "local_only"}, {"policy": "equal"}, RATE_ORACLE):
        if entry.get("label", entry["policy"]) in base.allocator_names:
            continue
        try:
            Scenario.from_document(document.changed(("allocators",), [entry]))
        except DocumentError:
            continue  # such as local_only where nothing may stay local
        yield entry


def run_all(
    planned: Plan,
    folder: Path,
    run: Run,
    document: ComparisonRuns,
    report: Callable[[str], None],
    stopped: Callable[[], bool],
) -> None:
    """Make the planned runs, each in its folder. `document` is written to `compare.json` after each of them,
    and again with its bound.

    Ends early after a run that was cut short, when `stopped` says so, or before a run that KeyboardInterrupt keeps from
    beginning.
    """
    document.write(folder / files.COMPARISON)
    for number, each in enumerate(planned.runs, start=1):
        run_dir = run_folder.create(folder / each.folder, each.scenario)
        try:
            summary = run(each.scenario, run_dir)
        except KeyboardInterrupt:
            return
        made = ComparedRun(folder=each.folder, seed=each.seed, point=each.point)
        document.runs.append(made)
        document.write(folder / files.COMPARISON)
        report(f"{number} of {len(planned.runs)}: {each.folder}")
        if summary.partial or stopped():
            return
        if document.engine == "simulated":
            reasons: list[str] = []
            made.bound = percent_bound(each.scenario, reasons.append)
            for reason in reasons:
                report(f"{each.folder}: {reason}")
            document.write(folder / files.COMPARISON)
