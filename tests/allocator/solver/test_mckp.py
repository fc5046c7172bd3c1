"""The MCKP solver: feasible, between brute force's answer and the bound, a pure function; EDF budgets as simulated."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.solver.arrays import Floats, Ints
from allocator.solver.edf import demand_ms, edf_separation
from allocator.solver.mckp import Budget, Limits, Mckp
from allocator.solver.relaxation import relax
from allocator.solver.rounding import repair
from allocator.solver.solve import solve_mckp

seeds = st.integers(0, 2**32 - 1)
several = settings(max_examples=80, deadline=None)
EXHAUSTIVE = Limits(pricing_steps=60, lp_gap=0.0, gap=0.0, gap_after_miss=0.0, cores=((100, 4096), (100, 4096)))
SHORT = Limits(pricing_steps=10, lp_gap=1e-3, gap=0.0, gap_after_miss=0.0, cores=((8, 8),))


def drawn(seed: int, options: int = 3, classes: int = 5, budgets: int = 2) -> Mckp:
    """A problem whose option 0 uses and is worth nothing, with listed and EDF budgets; its arrays are read-only."""
    rng = np.random.default_rng(seed)
    value, cloud_ms = rng.uniform(1, 10, (options, classes)), rng.uniform(0, 5, (options, classes))
    usage = rng.uniform(0, 1, (budgets, options, classes))
    missing = rng.random((options, classes)) < 0.2
    missing[0] = False
    value[0] = cloud_ms[0] = usage[:, 0] = 0
    value[missing] = -np.inf
    stage = rng.integers(0, 4, classes)
    budget_ms = np.cumsum(rng.uniform(1, 5, 3))
    capacity = rng.uniform(0.1, 0.6, budgets) * classes
    incumbent = np.zeros(classes, dtype=np.intp)
    for array in (value, usage, capacity, incumbent, stage, cloud_ms, budget_ms):
        array.setflags(write=False)
    return Mckp(value, usage, capacity, incumbent, edf_separation(stage, cloud_ms, budget_ms))


def best_value(mckp: Mckp) -> float:
    """By trying every choice."""
    choices = (np.array(choice) for choice in product(range(len(mckp.value)), repeat=len(mckp.classes)))
    values = [mckp.value_of(choice) for choice in choices if is_feasible(mckp, choice)]
    return max(values)


def is_feasible(mckp: Mckp, choice: Ints) -> bool:
    used = mckp.usage[:, choice, mckp.classes].sum(axis=1)
    return bool((used <= mckp.capacity + 1e-9).all()) and mckp.separate(choice) is None


@several
@given(seed=seeds)
def test_an_exhaustive_search_finds_the_optimum(seed: int) -> None:
    mckp = drawn(seed)
    solution = solve_mckp(mckp, EXHAUSTIVE)
    assert is_feasible(mckp, solution.choice)
    assert solution.value == pytest.approx(mckp.value_of(solution.choice))
    assert solution.value == pytest.approx(best_value(mckp), rel=1e-9)


@several
@given(seed=seeds)
def test_the_optimum_is_between_the_value_and_the_bound(seed: int) -> None:
    mckp = drawn(seed)
    solution = solve_mckp(mckp, SHORT)
    assert is_feasible(mckp, solution.choice)
    best = best_value(mckp)
    assert solution.value <= best * (1 + 1e-9)
    assert best <= solution.bound * (1 + 1e-9)


@several
@given(seed=seeds, classes=st.integers(1, 40))
def test_the_bound_is_that_of_its_multipliers(seed: int, classes: int) -> None:
    solution = solve_mckp(drawn(seed, classes=classes), SHORT)
    mckp, multipliers = solution.mckp, solution.multipliers
    assert (multipliers >= 0).all() and len(multipliers) == len(mckp.capacity)
    reduced = mckp.value - np.tensordot(multipliers, mckp.usage, axes=1)
    assert solution.bound == pytest.approx(reduced.max(axis=0).sum() + multipliers @ mckp.capacity)


@several
@given(seed=seeds, classes=st.integers(1, 40))
def test_solving_twice_gives_the_same_and_changes_nothing(seed: int, classes: int) -> None:
    mckp = drawn(seed, classes=classes)  # its arrays are read-only: a change would raise
    first, budgets = solve_mckp(mckp, SHORT), len(mckp.capacity)
    again = solve_mckp(mckp, SHORT)
    assert len(mckp.capacity) == budgets and len(mckp.table) == 1 + budgets
    assert first.choice.tolist() == again.choice.tolist() and first.bound == again.bound
    assert first.multipliers.tolist() == again.multipliers.tolist()


@several
@given(seed=seeds, classes=st.integers(1, 40))
def test_a_better_incumbent_is_never_lost(seed: int, classes: int) -> None:
    mckp = drawn(seed, classes=classes)
    good = solve_mckp(mckp, SHORT)
    again = Mckp(mckp.value, mckp.usage, mckp.capacity, good.choice, mckp.separate)
    hasty = SHORT._replace(pricing_steps=1, cores=())
    assert solve_mckp(again, hasty).value >= good.value


@several
@given(seed=seeds, classes=st.integers(1, 40))
def test_losses_and_priced_slack_are_the_distance_to_the_bound(seed: int, classes: int) -> None:
    relaxation = relax(drawn(seed, classes=classes), SHORT)
    mckp = relaxation.mckp
    totals = mckp.totals(relaxation.rounded)
    slack = relaxation.multipliers @ (mckp.capacity - totals[1:])
    loss = relaxation.loss[relaxation.rounded, mckp.classes].sum()
    assert totals[0] + loss + slack == pytest.approx(relaxation.bound)


def test_repair_takes_the_change_of_the_least_loss() -> None:
    value = np.array([[0.0, 0.0, 0.0], [5.0, 3.0, 4.0]])
    usage = np.array([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    mckp = Mckp(value, usage, np.array([2.0]), np.zeros(3, dtype=np.intp))
    everything = np.ones(3, dtype=np.intp)
    assert repair(mckp, everything, value.max(axis=0) - value).tolist() == [1, 0, 1]
    assert everything.tolist() == [1, 1, 1]


def test_budgets_beyond_the_listed_are_separated_only_where_exceeded() -> None:
    usage = np.array([[0.0, 0.0], [1.0, 1.0]])
    value = np.array([[0.0, 0.0], [2.0, 1.0]])
    asked: list[list[int]] = []

    def separate(choice: Ints) -> Budget | None:
        asked.append(choice.tolist())
        return Budget(usage, 1.0) if choice.sum() > 1 else None

    mckp = Mckp(value, usage[None], np.array([5.0]), np.zeros(2, dtype=np.intp), separate)
    solution = solve_mckp(mckp, EXHAUSTIVE)
    assert solution.choice.tolist() == [1, 0] and solution.bound == pytest.approx(2.0)
    assert solution.mckp.capacity.tolist() == [5.0, 1.0] and len(mckp.capacity) == 1
    assert [1, 1] in asked


def meets_all_deadlines(work_ms: list[int], due_ms: list[int], free_ms: list[int]) -> bool:
    """EDF, simulated ms by ms: every free worker does 1 ms of the work due first. Work can be divided."""
    left = dict(enumerate(work_ms))
    for now_ms in range(max(due_ms)):
        for _ in range(sum(free <= now_ms for free in free_ms)):
            waiting = [job for job, ms in left.items() if ms > 0]
            if waiting:
                left[min(waiting, key=due_ms.__getitem__)] -= 1
        if any(ms > 0 and due_ms[job] <= now_ms + 1 for job, ms in left.items()):
            return False
    return True


jobs = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 20)), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(jobs=jobs, free_ms=st.lists(st.integers(0, 12), min_size=1, max_size=3))
def test_edf_budgets_hold_exactly_where_a_simulated_schedule_meets_all_deadlines(
    jobs: list[tuple[int, int]], free_ms: list[int]
) -> None:
    work_ms, due_ms = (list(column) for column in zip(*jobs, strict=True))
    deadlines_ms, stage = np.unique(due_ms, return_inverse=True)
    budget_ms = np.array([sum(max(0, due - free) for free in free_ms) for due in deadlines_ms], dtype=float)
    cloud_ms: Floats = np.array([np.zeros(len(jobs)), work_ms])
    everything = np.ones(len(jobs), dtype=np.intp)
    exceeded = edf_separation(stage, cloud_ms, budget_ms)(everything)
    assert (exceeded is None) == meets_all_deadlines(work_ms, due_ms, free_ms)
    if exceeded is not None:
        # It is the budget of a prefix in order of deadlines, and the one exceeded by the largest share.
        used = exceeded.usage[everything, np.arange(len(jobs))]
        assert used.sum() > exceeded.capacity
        prefix = stage <= stage[exceeded.usage[1] > 0].max()
        assert ((exceeded.usage[1] > 0) == (prefix & (np.array(work_ms) > 0))).all()
        excess = (demand_ms(stage, cloud_ms[1], len(deadlines_ms)) - budget_ms) / np.maximum(budget_ms, 1e-9)
        assert (used.sum() - exceeded.capacity) == pytest.approx(excess.max())
