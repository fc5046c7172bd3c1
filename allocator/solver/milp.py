"""The exact answer, as two mixed-integer linear programs (HiGHS): most weight in time, then most weighted quality.

    maximize    sum_v objective[v] * x[v]
    subject to  sum of x over the options of a class <= its multiplicity    for every class
                sum_v usage[k, v] * x[v] <= capacity[k]                     for every budget
                sum_v weight[v] * x[v] >= the weight of the first program   in the second
                x integer

Dominated options have no variable. Equal rows are one class whose multiplicity is their number.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, vstack

from allocator.solver.arrays import UNMET, Floats, Ints, Rows
from allocator.solver.dominance import undominated

# Weights that differ by less than this share of the whole are equal; HiGHS itself is no more exact.
_WEIGHT_TOLERANCE = 1e-7
# So a weight that is a smaller share of all weights than this is refused: it might be given away unseen.
LEAST_WEIGHT_SHARE = 1e-6
# Budgets are scaled to this, so that the absolute tolerance of HiGHS, 1e-6, is our relative one of 1e-9.
_SCALE = 1e3
_STATUS_TIME = 1  # scipy's, for a limit reached
_LEAST = float(np.finfo(float).tiny)  # divisor instead of 0


@dataclass(frozen=True, slots=True)
class Exact:
    """The option of every row (UNMET if none), and upper bounds on every choice.

    Without a time limit the bounds are attained. The bound on quality is for choices of the weight that is attained.
    """

    choice: Ints
    weight_bound: float
    quality_bound: float


def exact_choice(rows: Rows, limit_s: float = float("inf")) -> Exact:
    """The best choice; with a time limit for each of the two programs, the best found within it.

    Raises:
        ValueError: weights differ too much for an exact answer.
        RuntimeError: HiGHS found no solution, for another reason than the limit.
    """
    if len(rows.weight) and rows.weight.min() < LEAST_WEIGHT_SHARE * rows.weight.sum():
        raise ValueError(too_far_apart(float(rows.weight.min()), float(rows.weight.sum())))
    try:
        return _solve(rows, _Milp(rows, merge=True), limit_s)
    except _InfeasibleByRounding:
        return _solve(rows, _Milp(rows, merge=False), limit_s)


def too_far_apart(least: float, in_all: float) -> str:
    """Why such weights can't be answered exactly."""
    return (
        f"optimal: a weight of {least:g} among weights of {in_all:g} in all is below what it can tell apart "
        f"({LEAST_WEIGHT_SHARE:g} of all); bring weights nearer together, or use deadline"
    )


def _solve(rows: Rows, program: "_Milp", limit_s: float) -> Exact:
    nobody = np.full(len(rows.weight), UNMET, dtype=np.intp)
    if not len(program.row):
        return Exact(nobody, 0.0, 0.0)
    weight = rows.weight[program.row]
    try:
        choice, weight_bound = program.maximize(weight, None, limit_s)
    except _NoSolutionInTime:
        return Exact(nobody, float("inf"), float("inf"))
    if not program.quality.any():
        return Exact(choice, weight_bound, 0.0)
    least = rows.objective(choice)[0] - _WEIGHT_TOLERANCE * rows.weight.sum()
    try:
        choice, quality_bound = program.maximize(program.quality, (weight, least), limit_s)
    except _NoSolutionInTime:
        quality_bound = float("inf")  # the choice of the first program stands
    return Exact(choice, weight_bound, quality_bound)


class _NoSolutionInTime(RuntimeError):
    """The time limit was reached before there was any feasible solution."""


class _InfeasibleByRounding(Exception):
    """A solution exceeds a budget by the tolerance of HiGHS, and no cut of merged variables excludes just that one."""


class _Milp:
    """The program for the budgets of some rows, without an objective.

    Attributes:
        row: (variables,) a row that has the variable's option; with `merge`, it stands for all rows equal to it.
        quality: (variables,) weighted quality of the option.
    """

    def __init__(self, rows: Rows, merge: bool) -> None:
        self._rows = rows
        columns = np.vstack((rows.need_mbps, rows.cloud_ms, rows.quality, rows.weight, rows.stage))
        if merge and columns.shape[1]:
            _, first, class_of = np.unique(columns, axis=1, return_index=True, return_inverse=True)
        else:
            first = class_of = np.arange(columns.shape[1])
        self._members = [np.flatnonzero(class_of == index) for index in range(len(first))]
        kept = undominated(rows.quality[:, first], (rows.need_mbps[:, first], rows.cloud_ms[:, first]))
        self._option, self._class = np.nonzero(kept)
        self.row: Ints = first[self._class]
        self.quality = rows.quality[self._option, self.row]
        self._multiplicity = np.array([len(self._members[index]) for index in self._class.tolist()], dtype=float)
        self._constraints = [LinearConstraint(self._usage(), ub=self._capacity())] if len(self.row) else []

    def _usage(self) -> csr_array:
        """Coefficients of the constraints: classes, then the uplink, then the cloud time until each deadline."""
        rows, ones, variables = self._rows, np.ones(len(self.row)), np.arange(len(self.row))
        shares = [rows.need_mbps[self._option, self.row] / rows.uplink_mbps]
        for stage, budget_ms in enumerate(rows.budget_ms):
            share = rows.cloud_ms[self._option, self.row] / max(budget_ms, _LEAST)
            shares.append(np.where(rows.stage[self.row] <= stage, share, 0.0))
        members = coo_array((ones, (self._class, variables)), shape=(len(self._members), len(variables)))
        return vstack([members.tocsr(), csr_array(np.array(shares) * _SCALE)])

    def _capacity(self) -> Floats:
        members = [len(rows) for rows in self._members]
        return np.array([*members, *[_SCALE] * (1 + len(self._rows.budget_ms))], dtype=float)

    def maximize(self, objective: Floats, floor: tuple[Floats, float] | None, limit_s: float) -> tuple[Ints, float]:
        """The feasible choice of the highest objective, and an upper bound on it.

        Args:
            objective: (variables,).
            floor: coefficients (variables,) of another sum, and its lower bound.
        """
        constraints = list(self._constraints)
        if floor is not None:
            scale = _SCALE / max(np.abs(floor[0]).max(), abs(floor[1]), _LEAST)
            constraints.append(LinearConstraint(floor[0][None, :] * scale, lb=floor[1] * scale))
        while True:
            found = milp(
                -objective,
                integrality=np.ones(len(objective)),
                bounds=Bounds(0, self._multiplicity),
                constraints=constraints,
                options={"mip_rel_gap": 0.0, "time_limit": limit_s},
            )
            if found.x is None and found.status == _STATUS_TIME:
                raise _NoSolutionInTime(f"optimal: {found.message}")
            if found.x is None:
                raise RuntimeError(f"optimal: {found.message}")
            counts = np.rint(found.x)
            choice = self._choice(counts)
            if self._rows.feasible(choice):
                return choice, -found.mip_dual_bound
            if (self._multiplicity[counts > 0] > 1).any():
                raise _InfeasibleByRounding
            # A cover cut: these options together exceed a budget, so at least one of them is not chosen.
            constraints.append(LinearConstraint((counts > 0).astype(float)[None, :], ub=counts.sum() - 1))

    def _choice(self, counts: Floats) -> Ints:
        """The option of every row; members of a class get its options in turn."""
        choice = np.full(len(self._rows.weight), UNMET, dtype=np.intp)
        assigned = [0] * len(self._members)
        for variable in np.flatnonzero(counts).tolist():
            index, count = int(self._class[variable]), int(counts[variable])
            choice[self._members[index][assigned[index] : assigned[index] + count]] = self._option[variable]
            assigned[index] += count
        return choice
