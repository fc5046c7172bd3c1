"""The exact answer, by mixed-integer programming (HiGHS). It may take seconds; `deadline` is the one for live use."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, vstack

from allocator.problem import Problem, Solution
from allocator.solver.arrays import UNMET, Floats, Ints, Rows, choices_of, rows_of
from allocator.solver.grants import hand_out

# Weights that differ by less than this share of the whole are equal; the solver itself is no more exact.
_WEIGHT_TOLERANCE = 1e-7
# Budgets are scaled to this, so that the solver's absolute tolerance of 1e-6 is our relative one of 1e-9.
_SCALE = 1e3
_STATUS_TIME = 1  # scipy's, for a limit reached


class Optimal:
    """As much weight in time as possible, then the best weighted quality: two MILPs, solved without any gap."""

    name = "optimal"
    standing = False
    by_need = True

    def solve(self, problem: Problem) -> Solution:
        return hand_out(problem, *choices_of(problem, exact_choice(rows_of(problem)).choice.tolist()))


@dataclass(frozen=True, slots=True)
class Exact:
    """The option of every row (UNMET if none), and what no choice exceeds.

    With a time limit, that may be more than the choice reaches; the bound on quality is for the weight that it reaches.
    """

    choice: Ints
    weight_bound: float
    quality_bound: float


def exact_choice(rows: Rows, limit_s: float = float("inf")) -> Exact:
    """The best choice; the best found within the limit for each of two solves, if there is a limit.

    Raises:
        RuntimeError: the solver gave up.
    """
    try:
        return _solve(rows, _Programme(rows, merge=True), limit_s)
    except _Overrun:
        return _solve(rows, _Programme(rows, merge=False), limit_s)


def _solve(rows: Rows, programme: "_Programme", limit_s: float) -> Exact:
    if not len(programme.row):
        return Exact(np.full(len(rows.weight), UNMET, dtype=np.intp), 0.0, 0.0)
    weight = rows.weight[programme.row]
    try:
        choice, weight_bound = programme.maximize(weight, None, limit_s)
    except _NothingInTime:
        return Exact(np.full(len(rows.weight), UNMET, dtype=np.intp), float("inf"), float("inf"))
    if not programme.quality.any():
        return Exact(choice, weight_bound, 0.0)
    least = rows.worth(choice)[0] - _WEIGHT_TOLERANCE * rows.weight.sum()
    try:
        choice, quality_bound = programme.maximize(programme.quality, (weight, least), limit_s)
    except _NothingInTime:
        quality_bound = float("inf")  # the choice of the first solve stands
    return Exact(choice, weight_bound, quality_bound)


class _NothingInTime(RuntimeError):
    """The solver's time was over before it had any solution."""


class _Overrun(Exception):
    """A budget is overrun by the solver's rounding, and no cut of merged variables excludes just that."""


class _Programme:
    """A variable for each useful option of a row; equal rows are one, with a variable that counts.

    An option is useless that needs no less of anything than another of its row and isn't better.
    """

    def __init__(self, rows: Rows, merge: bool) -> None:
        self._rows = rows
        columns = np.vstack((rows.need_mbps, rows.cloud_ms, rows.quality, rows.weight, rows.stage))
        if merge and columns.shape[1]:
            _, first, group = np.unique(columns, axis=1, return_index=True, return_inverse=True)
        else:
            first = group = np.arange(columns.shape[1])
        self._members = [np.flatnonzero(group == index) for index in range(len(first))]
        useful = _useful(rows.need_mbps[:, first], rows.cloud_ms[:, first], rows.quality[:, first])
        self._option, self._group = np.nonzero(useful)
        self.row: Ints = first[self._group]
        self.quality = rows.quality[self._option, self.row]
        self._count = np.array([len(self._members[group]) for group in self._group.tolist()], dtype=float)
        self._constraints = [LinearConstraint(self._budgets(), ub=self._limits())] if len(self.row) else []

    def _budgets(self) -> csr_array:
        """Rows: each group's members, then the uplink, then the cloud time until each deadline."""
        rows, ones, variables = self._rows, np.ones(len(self.row)), np.arange(len(self.row))
        shares = [rows.need_mbps[self._option, self.row] / rows.uplink_mbps]
        for stage, budget_ms in enumerate(rows.budget_ms):
            share = rows.cloud_ms[self._option, self.row] / max(budget_ms, np.finfo(float).tiny)
            shares.append(np.where(rows.stage[self.row] <= stage, share, 0.0))
        members = coo_array((ones, (self._group, variables)), shape=(len(self._members), len(variables)))
        return vstack([members.tocsr(), csr_array(np.array(shares) * _SCALE)])

    def _limits(self) -> Floats:
        members = [len(rows) for rows in self._members]
        return np.array([*members, *[_SCALE] * (1 + len(self._rows.budget_ms))], dtype=float)

    def maximize(self, gain: Floats, floor: tuple[Floats, float] | None, limit_s: float) -> tuple[Ints, float]:
        """The choice of the highest summed `gain` that keeps the budgets, and what no choice exceeds.

        Args:
            floor: what another sum of the variables must at least be.
        """
        constraints = list(self._constraints)
        if floor is not None:
            scale = _SCALE / max(np.abs(floor[0]).max(), abs(floor[1]), np.finfo(float).tiny)
            constraints.append(LinearConstraint(floor[0][None, :] * scale, lb=floor[1] * scale))
        while True:
            found = milp(
                -gain,
                integrality=np.ones(len(gain)),
                bounds=Bounds(0, self._count),
                constraints=constraints,
                options={"mip_rel_gap": 0.0, "time_limit": limit_s},
            )
            if found.x is None and found.status == _STATUS_TIME:
                raise _NothingInTime(f"optimal: {found.message}")
            if found.x is None:
                raise RuntimeError(f"optimal: {found.message}")
            counts = np.rint(found.x)
            choice = self._choice(counts)
            if self._rows.fits(choice):
                return choice, -found.mip_dual_bound
            # Overrun by the solver's rounding. All of these options together are too many: that is a cut.
            if (self._count[counts > 0] > 1).any():
                raise _Overrun
            constraints.append(LinearConstraint((counts > 0).astype(float)[None, :], ub=counts.sum() - 1))

    def _choice(self, counts: Floats) -> Ints:
        choice = np.full(len(self._rows.weight), UNMET, dtype=np.intp)
        given = [0] * len(self._members)
        for variable in np.flatnonzero(counts).tolist():
            group, count = int(self._group[variable]), int(counts[variable])
            choice[self._members[group][given[group] : given[group] + count]] = self._option[variable]
            given[group] += count
        return choice


def _useful(need: Floats, cloud_ms: Floats, quality: Floats) -> NDArray[np.bool_]:
    """Of each (options, rows), which are possible and not beaten by another option of the row. Of equals, the first."""
    useful = np.isfinite(need)
    for option in range(len(need)):
        for other in range(len(need)):
            beaten = (need[other] <= need[option]) & (cloud_ms[other] <= cloud_ms[option])
            beaten &= quality[other] >= quality[option]
            useful[option] &= ~(beaten & useful[other]) if other != option else True
    return useful
