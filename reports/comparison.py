"""Reads comparisons over seeds: each allocator's figures with intervals, and pairwise verdicts."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table

from reports import files
from reports.runs import one_line
from reports.schema import (
    AllocatorFigures,
    Bound,
    ComparedRun,
    Comparison,
    ComparisonPoint,
    ComparisonRuns,
    Document,
    DocumentUnreadable,
    Interval,
    Metric,
    Outcomes,
    Summary,
    Verdict,
)
from reports.statistics import compare, interval
from reports.summary import STATUSES

METRICS: dict[Metric, str] = {"compliance": "compliance", "delivered_quality": "delivered quality"}
UNITS: dict[Metric, str] = {"compliance": "points", "delivered_quality": "of quality"}
Read = TypeVar("Read", bound=Document)


class ComparisonError(ValueError):
    """The folder isn't a comparison, or no run in it can be read; the message says which."""


def read_comparison(*folders: Path) -> Comparison:
    """Read figures by point and allocator, verdicts, and warnings about missing or excluded runs.

    A point is a combination of swept values; compliance is in percent, quality in the profiles' basis.

    Args:
        folders: one comparison folder, or several run folders of one scenario.

    Raises:
        ComparisonError: the folder doesn't exist, or no run in it can be read.
    """
    if len(folders) == 1:
        folder = folders[0]
        made = _read(folder / files.COMPARISON, ComparisonRuns)
    else:
        folder = Path(os.path.commonpath([each.resolve() for each in folders]))
        made = _of_runs(folder, folders)
    warnings = [] if len(made.runs) == made.planned else [f"PARTIAL: {len(made.runs)} of {made.planned} runs were made"]
    rows: list[dict[str, Any]] = []
    for entry in made.runs:
        try:
            rows += _rows(folder, entry, warnings)
        except ComparisonError as error:
            warnings.append(f"left out: {error}")
    if not rows:
        raise ComparisonError(f"{folder}: no run in it can be read; " + "; ".join(warnings))
    frame = pd.DataFrame(rows)
    rng = np.random.default_rng(0)
    points = []
    for point, group in frame.groupby("point", sort=False):
        whole = group.groupby("seed").allocator.nunique() == group.allocator.nunique()
        if whole.any():
            points.append(_point(str(point), group[group.seed.map(whole)], made.compared, rng))
        else:
            warnings.append(f"left out: {point}: no seed has all allocators")
    return Comparison(
        scenario=made.scenario,
        command=made.command,
        engine=made.engine,
        machine=made.machine,
        compared=made.compared,
        folders=[str(folder / each) for each in dict.fromkeys(frame.folder)],
        warnings=warnings,
        points=points,
    )


def _of_runs(folder: Path, runs: Sequence[Path]) -> ComparisonRuns:
    """A comparison document for these runs. Raises ComparisonError if they aren't of one scenario."""
    entries: list[ComparedRun] = []
    names: dict[str, None] = {}
    scenarios = set()
    engine = ""
    for run in runs:
        summary = _read(run / files.SUMMARY, Summary)
        try:
            seed = int(yaml.safe_load((run / files.SCENARIO).read_text(encoding="utf-8"))["seed"])
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            raise ComparisonError(f"{run}: {files.SCENARIO} is missing or damaged") from None
        scenarios.add(summary.scenario)
        names |= dict.fromkeys(summary.allocators)
        engine = summary.engine
        if seed in [entry.seed for entry in entries]:
            raise ComparisonError(f"{run}: seed {seed} occurs twice; compared runs must differ in their seed")
        entries.append(ComparedRun(folder=str(run.resolve().relative_to(folder)), seed=seed, point={}))
    if len(scenarios) > 1:
        raise ComparisonError(f"runs of different scenarios: {', '.join(sorted(scenarios))}")
    return ComparisonRuns(
        scenario=scenarios.pop(), engine=engine, compared=list(names), planned=len(entries), runs=entries
    )


def _rows(folder: Path, entry: ComparedRun, warnings: list[str]) -> list[dict[str, Any]]:
    """One row for each allocator of a run."""
    run_dir = (folder / entry.folder).resolve()
    if not run_dir.is_relative_to(folder.resolve()):
        raise ComparisonError(f"{entry.folder} lies outside the comparison")
    summary = _read(run_dir / files.SUMMARY, Summary)
    if summary.partial:
        raise ComparisonError(f"{entry.folder} is partial: " + "; ".join(summary.warnings))
    if not summary.valid:
        warnings.append(f"{entry.folder} is INVALID, but included: " + "; ".join(summary.warnings))
    _check_ledger(run_dir, summary)
    where = {"point": json.dumps(entry.point, sort_keys=True), "seed": entry.seed, "folder": entry.folder}
    for metric in METRICS:
        where[f"bound_{metric}"] = np.nan if entry.bound is None else getattr(entry.bound, metric)
    return [
        where
        | s.counts()
        | {"allocator": name, "compliance": 100 * s.compliance, "delivered_quality": s.delivered_quality}
        for name, s in summary.allocators.items()
    ]


def _check_ledger(run_dir: Path, summary: Summary) -> None:
    """Raise ComparisonError unless the ledger exists and agrees with the summary."""
    path = run_dir / files.LEDGER
    try:
        ledger = pd.read_parquet(path, columns=["allocator", "status"])
    except (OSError, ValueError) as error:
        raise ComparisonError(f"{path}: {one_line(error)}") from None
    counted = ledger.value_counts().to_dict()
    for name, s in summary.allocators.items():
        if any(counted.get((name, status), 0) != s.counts()[status] for status in STATUSES):
            raise ComparisonError(f"{path}: its rows of {name} disagree with {files.SUMMARY}")


def _point(point: str, rows: pd.DataFrame, compared: list[str], rng: np.random.Generator) -> ComparisonPoint:
    """Figures and verdicts of one point, from the seeds that all allocators have."""
    allocators = sorted(set(rows.allocator))
    order = [name for name in compared if name in allocators] + [n for n in allocators if n not in compared]
    values = {metric: {name: _values(rows[rows.allocator == name], metric) for name in order} for metric in METRICS}
    figures = {}
    for name in order:
        own = rows[rows.allocator == name]
        counts = {count: round(sum(_values(own, count))) for count in Outcomes.model_fields}
        figures[name] = AllocatorFigures(
            **counts,
            compliance=_interval(values["compliance"][name], rng),
            delivered_quality=_interval(values["delivered_quality"][name], rng),
        )
    pairs = list(combinations([name for name in compared if name in allocators], 2))
    verdicts: list[Verdict] = []
    for metric, by_name in values.items():
        differences = compare([(by_name[first], by_name[second]) for first, second in pairs], rng, UNITS[metric])
        for (first, second), difference in zip(pairs, differences, strict=True):
            verdicts.append(Verdict(metric=metric, first=first, second=second, **asdict(difference)))
    return ComparisonPoint(
        point=json.loads(point),
        seeds=rows.seed.nunique(),
        figures=figures,
        verdicts=verdicts,
        bound=_bound(rows[rows.allocator == order[0]]),
    )


def _bound(rows: pd.DataFrame) -> Bound | None:
    """The mean bound of runs, one row each; None if one has none."""
    means = {metric: rows[f"bound_{metric}"].mean(skipna=False) for metric in METRICS}
    return None if any(np.isnan(mean) for mean in means.values()) else Bound(**means)


def _interval(values: list[float], rng: np.random.Generator) -> Interval:
    low, high = interval(values, rng)
    return Interval(mean=float(np.mean(values)), low=low, high=high)


def _values(rows: pd.DataFrame, column: str) -> list[float]:
    """One allocator's values, in the order of seeds."""
    return [float(value) for value in rows.sort_values("seed")[column].to_numpy()]


def comparison_tables(found: Comparison) -> Iterator[Table]:
    """Tables for a terminal: the figures of every point, then its verdicts."""
    for each in found.points:
        swept = each.swept()
        title = f"{found.scenario}{f', {swept}' if swept else ''}: {each.seeds} seeds, {found.engine}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("allocator", no_wrap=True)
        for name in ("scheduled = met + late + rejected + failed", "met %", "quality delivered"):
            table.add_column(name, justify="right", no_wrap=True)
        if each.bound is not None:
            table.add_column("regret", justify="right", no_wrap=True)
            found_mean = f"{each.bound.compliance:.1f}", f"{each.bound.delivered_quality:.1f}"
            table.add_row("(bound)", "", *found_mean, "")
        for name, f in each.figures.items():
            counts = f"{f.scheduled} = {f.met} + {f.late} + {f.rejected} + {f.failed}"
            shown = (f"{m.mean:.1f} [{m.low:.1f}, {m.high:.1f}]" for m in (f.compliance, f.delivered_quality))
            regret = each.regret(name)
            below = [] if regret is None else [f"{regret[0]:.1f} / {regret[1]:.1f}"]
            table.add_row(name if name in found.compared else f"({name})", counts, *shown, *below)
        yield table
        verdicts = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("in", "", "is", "Holm's p"):
            verdicts.add_column(name, no_wrap=name != "is")
        for v in each.verdicts:
            verdicts.add_row(METRICS[v.metric], f"{v.first} / {v.second}", v.verdict, f"{v.holm_p:.4f}")
        if each.verdicts:
            yield verdicts


def _read(path: Path, document: type[Read]) -> Read:
    try:
        return document.read(path)
    except OSError as error:
        hint = "; `scout recover` completes a run that was killed" if (path.parent / files.JOURNAL).is_dir() else ""
        raise ComparisonError(f"{path}: {error.strerror}{hint}") from None
    except DocumentUnreadable as error:
        raise ComparisonError(f"{path}: damaged, {error}") from None
