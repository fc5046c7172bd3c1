"""Most weight in time, then most weighted quality: the allocation problem as two MCKPs, one after the other.

The classes are the rows that can be met at all; "unmet" is the last option of each. Budgets are the uplink and, if
cloud time is modelled, the EDF budgets; in the second problem also the weight that the first one met.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from allocator.problem import Gap
from allocator.solver.arrays import UNMET, Floats, Ints, Rows
from allocator.solver.edf import edf_separation
from allocator.solver.mckp import Budget, Limits, Mckp
from allocator.solver.solve import solve_mckp

# Shares of the quality. `deadline` is to be within 0.1 % of the optimum: a bound this near proves it,
_GAP = 8.7e-4
# and where a core found nothing better, larger cores rarely do unless the gap is more than this.
_GAP_AFTER_MISS = 2.6e-3
# Share of the least weight that is given for leaving all of the uplink and of the cloud time unused. It makes choices
# of equal weight differ, which leads the search to those with room for more; below 1, it never costs a unit of weight.
_SLACK_REWARD = 0.2
# The same where weights are no multiples of the least: differences of weight may be tiny, so only ties are broken.
_SLACK_REWARD_TIE = 1e-6
# Share of the highest quality by which usage breaks ties between equal options, and among equal rows in favour of those
# with later deadlines. It is below what profiles state of quality.
_USAGE_PENALTY = 1e-5
# Weights are multiples of the least one, and met weights equal, within this share.
_WEIGHT_TOLERANCE = 1e-9
_LEAST = 1e-9  # divisor instead of 0
_FLOAT_ERROR = 1e-9  # share of a bound below which sums of floats differ by themselves

_PRICING_STEPS = 40  # columns; the LP is solved after 5 to 20
_LP_GAP = 1e-5  # a hundredth of `_GAP`
_LP_GAP_MANY = 1e-4  # the same for many rows, where a column takes long and rounding costs less
_MANY = 256  # rows
# Options in each core, and states kept in it: a core takes about 1, 4 and 6 ms.
_CORES = ((24, 64), (32, 256), (48, 256))
# For the weight, if few rows: one more deadline met is worth more time than a little quality.
_MORE_CORES = ((48, 512), (64, 1024))
_FEW = 48  # rows
_MOST_IN_CORES = 2048  # rows: with more, rounding and exchanges come within the gap, and cores take long to build


@dataclass(frozen=True, eq=False)
class _Classes:
    """Arrays of the rows that can be met, (options + 1, classes). "Unmet" and options not offered use nothing."""

    offered: NDArray[np.bool_]
    uplink: Floats  # share of the uplink
    cloud_ms: Floats
    quality: Floats
    met: Floats  # weight, 0 for "unmet"
    stage: Ints
    budget_ms: Floats

    @staticmethod
    def of(rows: Rows, can: Ints) -> "_Classes":
        """Columns `can` of the rows."""
        nothing = np.zeros((1, len(can)))
        uplink = rows.need_mbps[:, can] / rows.uplink_mbps
        offered = np.vstack((np.isfinite(uplink), np.ones_like(nothing, dtype=bool)))
        return _Classes(
            offered=offered,
            uplink=np.where(offered, np.vstack((uplink, nothing)), 0.0),
            cloud_ms=np.vstack((rows.cloud_ms[:, can], nothing)),
            quality=np.vstack((rows.quality[:, can], nothing)),
            met=np.vstack((np.broadcast_to(rows.weight[can], uplink.shape), nothing)),
            stage=rows.stage[can],
            budget_ms=rows.budget_ms,
        )

    @property
    def unmet(self) -> int:
        """The option that stands for not meeting the deadline."""
        return len(self.met) - 1

    @property
    def count(self) -> int:
        """How many classes there are."""
        return len(self.stage)

    @cached_property
    def separate(self) -> Callable[[Ints], Budget | None]:
        """The separation oracle for cloud time."""
        return edf_separation(self.stage, self.cloud_ms, self.budget_ms)

    @cached_property
    def index(self) -> Ints:
        """Indices of all classes."""
        return np.arange(self.count)


class Certified(NamedTuple):
    """A choice and how good it is.

    Attributes:
        choice: (rows,) the option of every row, UNMET for those that don't meet their deadline.
        weight_bound: no choice meets more weight.
        quality_bound: no choice that meets as much weight as this one has more weighted quality.
    """

    choice: Ints
    weight_bound: float
    quality_bound: float

    def gap(self, rows: Rows) -> Gap:
        """What the choice falls short of the bounds, as shares of them."""
        return Gap(*map(_short, rows.objective(self.choice), (self.weight_bound, self.quality_bound)))


def _short(value: float, bound: float) -> float:
    short = 1 - value / bound if bound > 0 else 0.0
    return short if short > _FLOAT_ERROR else 0.0


def solve_lexicographic(rows: Rows) -> Certified:
    """A choice for all rows, with its certificate: bounds by Lagrangian relaxation."""
    choice = np.full(len(rows.weight), UNMET, dtype=np.intp)
    can = np.flatnonzero(np.isfinite(rows.need_mbps).any(axis=0))
    if not len(can):
        return Certified(choice, 0.0, 0.0)
    found = _solve(_Classes.of(rows, can))
    choice[can] = np.where(found.choice == len(rows.need_mbps), UNMET, found.choice)
    return found._replace(choice=choice)


def _solve(classes: _Classes) -> Certified:
    """Options of all classes."""
    # If all are met by the options of least usage, that is the most weight.
    met: Ints = np.where(classes.offered[:-1], classes.uplink[:-1], np.inf).argmin(axis=0)
    weight_bound = float(classes.met[0].sum())
    if classes.uplink[met, classes.index].sum() > 1 or classes.separate(met) is not None:
        problem = _weight_problem(classes)
        found = solve_mckp(problem.mckp, problem.limits)
        met = found.choice
        weight_bound = min(weight_bound, _whole(found.bound + problem.withheld, problem.unit))
    problem = _quality_problem(classes, met)
    found = solve_mckp(problem.mckp, problem.limits)
    best = np.where(classes.offered, classes.quality, 0.0).max(axis=0).sum()
    return Certified(found.choice, weight_bound, min(float(best), found.bound + problem.withheld))


def _whole(bound: float, unit: float) -> float:
    """The greatest multiple of the unit within a bound; the bound itself if there is no unit."""
    return unit * np.floor(bound / unit + _WEIGHT_TOLERANCE) if unit else bound


class _Problem(NamedTuple):
    """One of the two problems.

    Attributes:
        withheld: what the terms that break ties take at most from the value of a choice: bounds rise by that.
        unit: of which all weights are multiples; 0 if there is none.
    """

    mckp: Mckp
    limits: Limits
    withheld: float
    unit: float = 0.0


def _weight_problem(classes: _Classes) -> _Problem:
    """Most weight, from nobody met."""
    weight, budget_ms = classes.met[0], classes.budget_ms
    unit = float(weight.min())
    multiples = np.abs(weight / unit - np.rint(weight / unit)).max() < _WEIGHT_TOLERANCE
    reward = (_SLACK_REWARD if multiples else _SLACK_REWARD_TIE) * unit
    most_ms = max(budget_ms[-1], _LEAST) if len(budget_ms) else np.inf
    # A choice uses at most all of the uplink and of the last budget, and what its rows without a budget take.
    free_ms = classes.cloud_ms[:, classes.stage == len(budget_ms)].max(axis=0).sum() if len(budget_ms) else 0.0
    withheld = reward / 2 * (2 + free_ms / most_ms)
    value = classes.met - reward / 2 * (classes.uplink + classes.cloud_ms / most_ms)
    value[~classes.offered] = -np.inf
    nobody = np.full(classes.count, classes.unmet)
    mckp = Mckp(value, classes.uplink[None], np.ones(1), nobody, classes.separate)
    # Weights that are multiples of a unit differ by a unit or not at all: a gap of less than that is none.
    gap = (1 - _SLACK_REWARD - _SLACK_REWARD_TIE) * unit if multiples else 0.0
    limits = Limits(_PRICING_STEPS, _LP_GAP, gap, 2 * gap, _cores(classes))
    if classes.count <= _FEW:
        limits = Limits(_PRICING_STEPS, _LP_GAP, gap, gap, _CORES + _MORE_CORES)
    return _Problem(mckp, limits, withheld, unit if multiples else 0.0)


def _quality_problem(classes: _Classes, met: Ints) -> _Problem:
    """Most quality among choices that meet the weight of `met`, from that choice."""
    early = 1 - classes.stage / max(len(classes.budget_ms), 1)
    uplink, cloud_ms = (usage / max(usage.max(), _LEAST) for usage in (classes.uplink, classes.cloud_ms))
    penalty = _USAGE_PENALTY * float(classes.quality.max())
    taken = penalty * (uplink + cloud_ms * early)
    withheld = float(np.where(classes.offered, taken, 0.0).max(axis=0).sum())
    value = np.where(classes.offered, classes.quality - taken, -np.inf)
    quality = float(value[met, classes.index].sum())
    usage, capacity = classes.uplink[None], np.ones(1)
    if (met != classes.unmet).all():
        value[classes.unmet] = -np.inf
    else:
        # That the weight stays is a budget of negative usage.
        weight = max(classes.met[met, classes.index].sum(), _LEAST)
        usage = np.stack((classes.uplink, -classes.met / weight))
        capacity = np.array([1.0, -1 + _WEIGHT_TOLERANCE])
    lp_gap = _LP_GAP if classes.count <= _MANY else _LP_GAP_MANY
    limits = Limits(_PRICING_STEPS, lp_gap, _GAP * quality, _GAP_AFTER_MISS * quality, _cores(classes))
    return _Problem(Mckp(value, usage, capacity, met, classes.separate), limits, withheld)


def _cores(classes: _Classes) -> tuple[tuple[int, int], ...]:
    return _CORES if classes.count <= _MOST_IN_CORES else ()
