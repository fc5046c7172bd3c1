"""The exact answer, by mixed-integer programming (HiGHS). Seconds may pass; see `deadline` for one that runs live."""

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array, csr_array, vstack

from allocator.grants import hand_out
from allocator.problem import Problem, Solution
from allocator.rows import UNMET, Floats, Ints, Rows, choices_of, rows_of

# Weights that differ by less than this share of the whole are equal; the solver itself is no more exact.
_WEIGHT_TOLERANCE = 1e-7


class Optimal:
    """As much weight in time as possible, then the best weighted quality: two MILPs, solved without any gap."""

    name = "optimal"
    standing = False

    def solve(self, problem: Problem) -> Solution:
        return hand_out(problem, *choices_of(problem, exact_choice(rows_of(problem)).tolist()))


def exact_choice(rows: Rows) -> Ints:
    """The option of every row, UNMET if none.

    Raises:
        RuntimeError: the solver gave up.
    """
    choice = np.full(len(rows.weight), UNMET, dtype=np.intp)
    option, row = np.nonzero(np.isfinite(rows.need_mbps))
    if not len(row):
        return choice
    weight = rows.weight[row]
    chosen = _maximize(rows, option, row, weight, None)
    if rows.quality[option, row].any():
        met = weight[chosen].sum()
        least = met - _WEIGHT_TOLERANCE * rows.weight.sum()
        chosen = _maximize(rows, option, row, rows.quality[option, row], (weight, least))
    choice[row[chosen]] = option[chosen]
    return choice


def _maximize(rows: Rows, option: Ints, row: Ints, gain: Floats, floor: tuple[Floats, float] | None) -> Ints:
    """Indices of the variables that are 1 when their summed `gain` is highest: one binary for each option of a row.

    The solver accepts budgets overrun by one in a million. A selection that truly overruns is a cover (no solution has
    all of it) and is cut off as such, until one is left that holds.
    """
    variables = np.arange(len(row))
    ones = np.ones(len(row))
    need = rows.need_mbps[option, row] / rows.uplink_mbps
    cloud_ms = rows.cloud_ms[option, row]
    # One option a row, then the uplink, then the cloud until each deadline: all of them as shares of 1.
    at_most = [coo_array((ones, (row, variables))).tocsr(), csr_array(need[None, :])]
    for stage, budget_ms in enumerate(rows.budget_ms):
        share = cloud_ms / max(budget_ms, np.finfo(float).tiny)
        at_most.append(csr_array(np.where(rows.stage[row] <= stage, share, 0.0)[None, :]))
    constraints = [LinearConstraint(vstack(at_most), ub=1.0)]
    if floor is not None:
        scale = np.abs(floor[0]).max() or 1.0
        constraints.append(LinearConstraint(floor[0][None, :] / scale, lb=floor[1] / scale))
    while True:
        found = milp(
            -gain,
            integrality=ones,
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            raise RuntimeError(f"optimal: {found.message}")
        chosen = np.flatnonzero(found.x > 0.5)
        choice = np.full(len(rows.weight), UNMET, dtype=np.intp)
        choice[row[chosen]] = option[chosen]
        if rows.fits(choice):
            return chosen
        cover = np.zeros(len(row))
        cover[chosen] = 1.0
        constraints.append(LinearConstraint(cover[None, :], ub=len(chosen) - 1))
