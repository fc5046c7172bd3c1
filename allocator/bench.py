"""How near the policies come to the best there is, and how long they take, over random problems from one seed."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import scipy
from rich.table import Table

from allocator.bruteforce import brute_force
from allocator.instances import draw_problem
from allocator.policies import make_policy
from allocator.policies.deadline import near_choice
from allocator.policies.greedy import greedy_choice
from allocator.policies.optimal import exact_choice
from allocator.problem import Problem
from allocator.rows import rows_of

SEED = 20261124
NEAR = 1e-3  # the share of the quality that `deadline` may fall short of `optimal`
_LIMIT_S = 2.0  # for each of optimal's two solves; what it can't prove until then is counted
_SAME = 1e-6


def bench_allocator(quick: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    """Everything measured, fit for JSON; `passed` says whether the claims of the first two parts hold.

    Args:
        quick: fewer and smaller problems, half a minute at most.
        progress: is told what is being measured.
    """
    rng = np.random.default_rng(SEED)
    progress("optimal against brute force")
    exact = _against_brute_force(rng, 60 if quick else 300)
    progress("deadline and greedy against optimal")
    near = _against_optimal(rng, 60 if quick else 1000, 48 if quick else 128)
    progress("solve times")
    times = _times(rng, quick)
    return {
        "machine": {
            "date": datetime.now(UTC).date().isoformat(),
            "cpus": os.cpu_count(),
            "linux": platform.release(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "seed": SEED,
        "quick": quick,
        "optimal_against_brute_force": exact,
        "against_optimal": near,
        "solve_times": times,
        "passed": not exact["worse"] and all(row["passed"] for row in near if row["policy"] == "deadline"),
    }


def _against_brute_force(rng: np.random.Generator, problems: int) -> dict[str, Any]:
    """How often `optimal` is worse than trying everything; it can't be better."""
    worse = 0
    for index in range(problems):
        problem = draw_problem(rng, int(rng.integers(1, 7)), cloud=index % 2 == 1)
        rows = rows_of(problem)
        found, best = rows.worth(exact_choice(rows).choice), brute_force(problem)
        worse += any(abs(a - b) > _SAME * (1 + b) for a, b in zip(found, best, strict=True))
    return {"problems": problems, "worse": worse}


def _against_optimal(rng: np.random.Generator, problems: int, most: int) -> list[dict[str, Any]]:
    """Weight and quality of `deadline` and `greedy` against `optimal`, with one budget and with two."""
    choosers = {"deadline": near_choice, "greedy": greedy_choice}
    gaps: dict[tuple[str, bool], list[float]] = {(name, cloud): [] for name in choosers for cloud in (False, True)}
    fewer, unproven = dict.fromkeys(gaps, 0), dict.fromkeys(gaps, 0)
    for index in range(problems):
        cloud = index % 2 == 1
        rows = rows_of(draw_problem(rng, int(rng.integers(4, most + 1)), cloud))
        exact = exact_choice(rows, _LIMIT_S)
        weight, quality = rows.worth(exact.choice)
        proven = exact.weight_bound <= weight * (1 + _SAME) and exact.quality_bound <= quality * (1 + NEAR / 10)
        for name, choose in choosers.items():
            found = rows.worth(choose(rows))
            unproven[name, cloud] += not proven
            if found[0] < weight * (1 - _SAME):
                fewer[name, cloud] += 1
            elif found[0] <= weight * (1 + _SAME):
                gaps[name, cloud].append(max(0.0, 1 - found[1] / quality) if quality else 0.0)
    return [
        {
            "policy": name,
            "budgets": 1 + cloud,
            "problems": problems // 2,
            "fewer_met": fewer[name, cloud],
            "mean_quality_gap": float(np.mean(found)),
            "worst_quality_gap": float(np.max(found)),
            "over_near": sum(gap > NEAR for gap in found),
            "optimal_unproven": unproven[name, cloud],
            "passed": not fewer[name, cloud] and max(found) <= NEAR,
        }
        for (name, cloud), found in gaps.items()
    ]


def _times(rng: np.random.Generator, quick: bool) -> list[dict[str, Any]]:
    """Times of whole solves, from a problem of Python objects to grants. Each problem is solved once."""
    sizes = {4: 200, 16: 200, 64: 200, 128: 100, 256: 100, 1024: 50, 10_000: 20}
    if quick:
        sizes = {4: 50, 16: 50, 64: 50, 1024: 4, 10_000: 2}
    rows = []
    for size, repeats in sizes.items():
        for cloud in (False, True):
            problems = [draw_problem(rng, size, cloud) for _ in range(repeats)]
            for name in ("deadline", "greedy", "optimal"):
                few = (3 if quick else 20) if name == "optimal" else repeats
                if name == "optimal" and size > (16 if quick else 128):
                    continue
                solve_ms = _timed(name, problems[:few])
                rows.append(
                    {
                        "policy": name,
                        "requests": size,
                        "budgets": 1 + cloud,
                        "problems": few,
                        "p50_ms": float(np.percentile(solve_ms, 50)),
                        "p99_ms": float(np.percentile(solve_ms, 99)),
                    }
                )
    return rows


def _timed(name: str, problems: Sequence[Problem]) -> list[float]:
    policy = make_policy(name)
    taken_ms = []
    for problem in problems:
        start = time.perf_counter()
        if name == "optimal":
            exact_choice(rows_of(problem), _LIMIT_S)
        else:
            policy.solve(problem)
        taken_ms.append((time.perf_counter() - start) * 1e3)
    return taken_ms


def bench_tables(found: dict[str, Any]) -> list[Table]:
    """Tables of what `bench_allocator` returned; print them with rich."""
    exact, machine = found["optimal_against_brute_force"], found["machine"]
    where = ", ".join(f"{value} {key}" if key == "cpus" else f"{key} {value}" for key, value in machine.items())
    title = f"optimal is worse than brute force in {exact['worse']} of {exact['problems']} problems\n\nAgainst optimal"
    near = _table(
        title, "policy", "budgets", "problems", "meets fewer", "mean gap", "worst gap", "gap > 0.1%", "unproven"
    )
    for row in found["against_optimal"]:
        counts = f"{row['budgets']}", f"{row['problems']}", f"{row['fewer_met']}"
        gaps = f"{row['mean_quality_gap']:.4%}", f"{row['worst_quality_gap']:.3%}", f"{row['over_near']}"
        near.add_row(row["policy"], *counts, *gaps, f"{row['optimal_unproven']}")
    near.caption = f"unproven: optimal stopped after {_LIMIT_S:g} s; compared with the best that it had found"
    times = _table("Solve times, ms", "policy", "requests", "budgets", "problems", "p50", "p99")
    for row in found["solve_times"]:
        head = row["policy"], f"{row['requests']}", f"{row['budgets']}", f"{row['problems']}"
        times.add_row(*head, f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.3f}")
    times.caption = where
    return [near, times]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table
