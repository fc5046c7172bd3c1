"""Optimality gaps and solve times of the policies, over random problems from one seed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from rich.table import Table

from allocator.bench.bruteforce import brute_force
from allocator.bench.instances import draw_problem
from allocator.policies import make_policy
from allocator.policies.greedy import greedy_choice
from allocator.problem import Problem
from allocator.solver.arrays import rows_of
from allocator.solver.lexicographic import solve_lexicographic
from allocator.solver.milp import Exact, exact_choice

SEED = 20261124
NEAR = 1e-3  # the share of the quality that `deadline` may fall short of `optimal`
_LIMIT_S = 2.0  # for each of optimal's two programs; problems not proved optimal by then are counted
_SAME = 1e-6  # relative difference of equal objectives
_PROVEN = 1e-4  # relative gap to the bound at which an answer counts as proved optimal


@dataclass(frozen=True, slots=True)
class BruteForce:
    """`optimal` against exhaustive search, which it can't exceed."""

    problems: int
    worse: int


@dataclass(frozen=True, slots=True)
class AgainstOptimal:
    """One policy against `optimal`: problems with fewer or more weight met, and relative quality gaps of the others.

    Attributes:
        budgets: 1: the uplink's; 2: the cloud's as well.
        optimal_proven: whether `optimal` proved its answers; if not, gaps are to the best choice that it had found.
        worst_bound_gap: to `optimal`'s upper bound.
    """

    policy: str
    budgets: int
    optimal_proven: bool
    problems: int
    fewer_met: int
    more_met: int
    mean_quality_gap: float
    worst_quality_gap: float
    over_near: int
    worst_bound_gap: float
    passed: bool


@dataclass(frozen=True, slots=True)
class SolveTimes:
    """A policy's decision times for problems of one size."""

    policy: str
    requests: int
    budgets: int
    problems: int
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class AllocatorBench:
    """All measurements; `passed`: whether the claims of the first two parts hold."""

    seed: int
    quick: bool
    optimal_against_brute_force: BruteForce
    against_optimal: list[AgainstOptimal]
    solve_times: list[SolveTimes]
    passed: bool


def bench_allocator(quick: bool, progress: Callable[[str], None]) -> AllocatorBench:
    """Measure the policies' answers and decision times.

    Args:
        quick: fewer and smaller problems, half a minute at most.
        progress: called with the name of each part before it starts.
    """
    rng = np.random.default_rng(SEED)
    progress("optimal against brute force")
    exact = _against_brute_force(rng, 60 if quick else 300)
    progress("deadline and greedy against optimal")
    near = _against_optimal(rng, 60 if quick else 1000, 48 if quick else 128)
    progress("solve times")
    times = _times(rng, quick)
    passed = not exact.worse and all(row.passed for row in near if row.policy == "deadline")
    return AllocatorBench(SEED, quick, exact, near, times, passed)


def _against_brute_force(rng: np.random.Generator, problems: int) -> BruteForce:
    """In how many problems `optimal` differs from exhaustive search."""
    worse = 0
    for index in range(problems):
        problem = draw_problem(rng, int(rng.integers(1, 7)), cloud=index % 2 == 1)
        rows = rows_of(problem)
        found, best = rows.objective(exact_choice(rows).choice), brute_force(problem)
        worse += any(abs(a - b) > _SAME * (1 + b) for a, b in zip(found, best, strict=True))
    return BruteForce(problems, worse)


def _against_optimal(rng: np.random.Generator, problems: int, most: int) -> list[AgainstOptimal]:
    """Weight and quality of `deadline` and `greedy` against `optimal`, with one budget and with two."""
    choosers = {"deadline": lambda rows: solve_lexicographic(rows).choice, "greedy": greedy_choice}
    table: dict[tuple[str, bool, bool], _Gaps] = {}
    for index in range(problems):
        cloud = index % 2 == 1
        rows = rows_of(draw_problem(rng, int(rng.integers(4, most + 1)), cloud))
        exact = exact_choice(rows, _LIMIT_S)
        weight, quality = rows.objective(exact.choice)
        proven = exact.weight_bound <= weight * (1 + _SAME) and exact.quality_bound <= quality * (1 + _PROVEN)
        for name, choose in choosers.items():
            gaps = table.setdefault((name, cloud, proven), _Gaps())
            gaps.add(rows.objective(choose(rows)), (weight, quality), exact)
    return [
        AgainstOptimal(
            policy=name,
            budgets=1 + cloud,
            optimal_proven=proven,
            problems=gaps.problems,
            fewer_met=gaps.fewer,
            more_met=gaps.more,
            mean_quality_gap=float(np.mean(gaps.quality or [0.0])),
            worst_quality_gap=max(gaps.quality, default=0.0),
            over_near=sum(gap > NEAR for gap in gaps.quality),
            worst_bound_gap=max(gaps.bound, default=0.0),
            passed=not gaps.fewer and max(gaps.quality, default=0.0) <= NEAR,
        )
        for (name, cloud, proven), gaps in sorted(table.items(), key=lambda item: (item[0][:2], not item[0][2]))
    ]


@dataclass
class _Gaps:
    """Relative quality gaps of a policy to `optimal`, of the problems in which both meet the same weight.

    `quality` is the gap to the choice that `optimal` found, negative if the policy's is better; `bound` is the gap to
    its upper bound. Both are the same unless `optimal` reached its time limit.
    """

    problems: int = 0
    fewer: int = 0
    more: int = 0
    quality: list[float] = field(default_factory=list)
    bound: list[float] = field(default_factory=list)

    def add(self, found: tuple[float, float], best: tuple[float, float], exact: Exact) -> None:
        self.problems += 1
        if found[0] < best[0] * (1 - _SAME):
            self.fewer += 1
        elif found[0] > best[0] * (1 + _SAME):
            self.more += 1
        elif best[1]:
            self.quality.append(round(1 - found[1] / best[1], 9) + 0.0)
            if np.isfinite(exact.quality_bound):
                self.bound.append(1 - found[1] / max(exact.quality_bound, best[1]))


def _times(rng: np.random.Generator, quick: bool) -> list[SolveTimes]:
    """Times of whole decisions, from a problem of Python objects to its solution. Each problem is solved once."""
    sizes = {4: 300, 16: 300, 64: 300, 128: 200, 256: 200, 1024: 60, 10_000: 30}
    if quick:
        sizes = {4: 50, 16: 50, 64: 50, 1024: 4, 10_000: 2}
    rows = []
    for size, repeats in sizes.items():
        most = {"deadline": repeats, "greedy": min(repeats, 50), "optimal": 3 if quick else 20}
        if size > (16 if quick else 128):
            del most["optimal"]
        for cloud in (False, True):
            taken_ms: dict[str, list[float]] = {name: [] for name in most}
            for index in range(repeats):
                # Draw each problem just before it is solved: with all in memory, garbage collection would be timed too.
                problem = draw_problem(rng, size, cloud)
                for name, problems in most.items():
                    if index < problems:
                        taken_ms[name].append(_timed_ms(name, problem))
            rows += [
                SolveTimes(
                    policy=name,
                    requests=size,
                    budgets=1 + cloud,
                    problems=len(solve_ms),
                    p50_ms=float(np.percentile(solve_ms, 50)),
                    p99_ms=float(np.percentile(solve_ms, 99)),
                )
                for name, solve_ms in taken_ms.items()
            ]
    return rows


def _timed_ms(name: str, problem: Problem) -> float:
    policy = make_policy(name)
    start = time.perf_counter()
    if name == "optimal":
        exact_choice(rows_of(problem), _LIMIT_S)
    else:
        policy.solve(problem)
    return (time.perf_counter() - start) * 1e3


def bench_tables(found: AllocatorBench, machine: str) -> list[Table]:
    """Tables, for rich to print, of a result of `bench_allocator` on a machine."""
    exact = found.optimal_against_brute_force
    title = f"optimal is worse than brute force in {exact.worse} of {exact.problems} problems\n\nAgainst optimal"
    columns = "policy", "budgets", "optimal", "problems", "fewer", "more", "mean gap", "worst gap", "> 0.1%", "to bound"
    near = _table(title, *columns)
    for row in found.against_optimal:
        proven = "proven" if row.optimal_proven else "stopped"
        counts = f"{row.problems}", f"{row.fewer_met}", f"{row.more_met}"
        gaps = f"{row.mean_quality_gap:.4%}", f"{row.worst_quality_gap:.3%}", f"{row.over_near}"
        near.add_row(row.policy, f"{row.budgets}", proven, *counts, *gaps, f"{row.worst_bound_gap:.3%}")
    near.caption = (
        "fewer, more: problems with less or more weight met than by optimal; stopped: by optimal's time limit of "
        f"{_LIMIT_S:g} s, gaps are to the best choice that it had found; to bound: the worst gap to its upper bound"
    )
    times = _table("Solve times, ms", "policy", "requests", "budgets", "problems", "p50", "p99")
    for solved in found.solve_times:
        head = solved.policy, f"{solved.requests}", f"{solved.budgets}", f"{solved.problems}"
        times.add_row(*head, f"{solved.p50_ms:.3f}", f"{solved.p99_ms:.3f}")
    times.caption = machine
    return [near, times]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table
