"""A folder of runs with many seeds becomes tables: every allocator's figures with intervals, and who is better."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table

from reports.statistics import compare, interval
from reports.summary import STATUSES

METRICS = {"compliance": "compliance", "delivered_quality": "delivered quality"}
UNITS = {"compliance": "points", "delivered_quality": "of quality"}
COUNTS = ("issued", *STATUSES)
COMPARE_FILE = "compare.json"
MAX_FILE_BYTES = 64 * 2**20


class ComparisonError(ValueError):
    """Not a folder of a comparison, or nothing in it can be read; the message says which."""


def read_comparison(*folders: Path) -> dict[str, Any]:
    """One document: figures by point and allocator, verdicts, and plainly whatever is missing.

    Points are what was swept; compliance is in percent, quality as the profiles say.

    Args:
        folders: one of a comparison, or several of runs of one scenario, which are then what is compared.

    Raises:
        ComparisonError: no such folder, or no run in it that can be read.
    """
    if len(folders) == 1:
        folder = folders[0]
        found = _json(folder / COMPARE_FILE)
    else:
        folder = Path(os.path.commonpath([each.resolve() for each in folders]))
        found = _of_runs(folder, folders)
    try:
        listed, compared = list(found["runs"]), [str(name) for name in found["compared"]]
        planned = int(found["planned"])
    except (KeyError, TypeError, ValueError):
        raise ComparisonError(f"{folder / COMPARE_FILE}: not of a comparison") from None
    warnings = [] if len(listed) == planned else [f"PARTIAL: {len(listed)} of {planned} runs were made"]
    rows = []
    for entry in listed:
        try:
            rows += list(_rows(folder, entry, warnings))
        except (ComparisonError, KeyError, TypeError) as error:
            warnings.append(f"left out: {error}")
    if not rows:
        raise ComparisonError(f"{folder}: no run in it can be read; " + "; ".join(warnings))
    frame = pd.DataFrame(rows)
    rng = np.random.default_rng(0)
    points = []
    for point, group in frame.groupby("point", sort=False):
        whole = group.groupby("seed").allocator.nunique() == group.allocator.nunique()
        if whole.any():
            points.append(_point(str(point), group[group.seed.map(whole)], compared, rng))
        else:
            warnings.append(f"left out: {point}: no seed has all allocators")
    return {key: found.get(key) for key in ("scenario", "command", "engine", "machine")} | {
        "compared": compared,
        "folders": [str(folder / each) for each in dict.fromkeys(frame.folder)],
        "warnings": warnings,
        "points": points,
    }


def _of_runs(folder: Path, runs: Sequence[Path]) -> dict[str, Any]:
    """What a comparison's document would say of these runs. Raises ComparisonError if they aren't of one scenario."""
    entries: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    scenarios = set()
    for run in runs:
        summary = _json(run / "summary.json")
        try:
            seed = int(yaml.safe_load((run / "scenario.yaml").read_text(encoding="utf-8"))["seed"])
            scenarios.add(str(summary["scenario"]))
            names |= dict.fromkeys(summary["allocators"])
            engine = summary["engine"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            raise ComparisonError(f"{run}: scenario.yaml or summary.json is missing or damaged") from None
        if seed in [entry["seed"] for entry in entries]:
            raise ComparisonError(f"{run}: seed {seed} is there already; runs to compare differ in their seed")
        entries.append({"folder": str(run.resolve().relative_to(folder)), "seed": seed, "point": {}})
    if len(scenarios) > 1:
        raise ComparisonError(f"runs of different scenarios: {', '.join(sorted(scenarios))}")
    about = {"scenario": scenarios.pop(), "engine": engine, "compared": list(names)}
    return about | {"planned": len(entries), "runs": entries}


def _rows(folder: Path, entry: dict[str, Any], warnings: list[str]) -> Iterator[dict[str, Any]]:
    run_dir = (folder / str(entry["folder"])).resolve()
    if not run_dir.is_relative_to(folder.resolve()):
        raise ComparisonError(f"{entry['folder']} lies outside the comparison")
    summary = _json(run_dir / "summary.json")
    if summary["partial"]:
        raise ComparisonError(f"{entry['folder']} is partial: " + "; ".join(summary["warnings"]))
    if not summary["valid"]:
        warnings.append(f"{entry['folder']} is INVALID, and counted all the same: " + "; ".join(summary["warnings"]))
    _check_ledger(run_dir, summary)
    point = json.dumps(entry["point"], sort_keys=True)
    for name, s in summary["allocators"].items():
        counts = {status: s[status] for status in COUNTS}
        values = {"compliance": 100 * s["compliance"], "delivered_quality": s["delivered_quality"]}
        where = {"point": point, "seed": entry["seed"], "allocator": name, "folder": str(entry["folder"])}
        yield where | counts | values


def _check_ledger(run_dir: Path, summary: dict[str, Any]) -> None:
    """Raises ComparisonError unless the ledger is there and says what the summary says."""
    path = run_dir / "ledger.parquet"
    try:
        ledger = pd.read_parquet(path, columns=["allocator", "status"])
    except (OSError, ValueError) as error:
        raise ComparisonError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    counted = ledger.value_counts().to_dict()
    for name, s in summary["allocators"].items():
        if any(counted.get((name, status), 0) != s[status] for status in STATUSES):
            raise ComparisonError(f"{path}: its rows of {name} are not what summary.json says")


def _point(point: str, rows: pd.DataFrame, compared: list[str], rng: np.random.Generator) -> dict[str, Any]:
    """Figures and verdicts of one combination of what was swept, from seeds that all allocators have."""
    allocators = sorted(set(rows.allocator))
    order = [name for name in compared if name in allocators] + [n for n in allocators if n not in compared]
    values = {metric: {name: _values(rows[rows.allocator == name], metric) for name in order} for metric in METRICS}
    figures: dict[str, dict[str, Any]] = {}
    for name in order:
        own = rows[rows.allocator == name]
        figures[name] = {status: round(sum(_values(own, status))) for status in COUNTS}
        for metric, by_name in values.items():
            low, high = interval(by_name[name], rng)
            figures[name][metric] = {"mean": float(np.mean(by_name[name])), "low": low, "high": high}
    pairs = list(combinations([name for name in compared if name in allocators], 2))
    verdicts = []
    for metric, by_name in values.items():
        differences = compare([(by_name[first], by_name[second]) for first, second in pairs], rng, UNITS[metric])
        for (first, second), difference in zip(pairs, differences, strict=True):
            verdicts.append({"metric": metric, "first": first, "second": second} | asdict(difference))
    return {"point": json.loads(point), "seeds": rows.seed.nunique(), "figures": figures, "verdicts": verdicts}


def _values(rows: pd.DataFrame, column: str) -> list[float]:
    """Of one allocator, in the order of seeds."""
    return [float(value) for value in rows.sort_values("seed")[column].to_numpy()]


def comparison_tables(found: dict[str, Any]) -> Iterator[Table]:
    """For a terminal: the figures of every point, then who is better than whom."""
    for each in found["points"]:
        swept = ", ".join(f"{key} {value}" for key, value in each["point"].items())
        title = f"{found['scenario']}{f', {swept}' if swept else ''}: {each['seeds']} seeds, {found['engine']}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("allocator", no_wrap=True)
        for name in ("issued = met + late + rejected + failed", "met %", "quality delivered"):
            table.add_column(name, justify="right", no_wrap=True)
        for name, f in each["figures"].items():
            counts = f"{f['issued']} = {f['met']} + {f['late']} + {f['rejected']} + {f['failed']}"
            shown = (f"{f[m]['mean']:.1f} [{f[m]['low']:.1f}, {f[m]['high']:.1f}]" for m in METRICS)
            table.add_row(name if name in found["compared"] else f"({name})", counts, *shown)
        yield table
        verdicts = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("in", "", "is", "Holm's p"):
            verdicts.add_column(name, no_wrap=name != "is")
        for v in each["verdicts"]:
            verdicts.add_row(METRICS[v["metric"]], f"{v['first']} / {v['second']}", v["verdict"], f"{v['holm_p']:.4f}")
        if each["verdicts"]:
            yield verdicts


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ComparisonError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "; `scout recover` completes a run that was killed" if (path.parent / "journal").is_dir() else ""
        raise ComparisonError(f"{path}: {error.strerror}{hint}") from None
    except ValueError:
        raise ComparisonError(f"{path}: damaged, not JSON") from None
    if not isinstance(found, dict):
        raise ComparisonError(f"{path}: damaged, not a JSON object")
    return found
