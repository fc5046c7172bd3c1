"""A heuristic for the MCKP with an upper bound: relaxation, rounding, local search, core enlargement."""

from typing import NamedTuple

import numpy as np

from allocator.solver.arrays import Ints
from allocator.solver.core import build_core, solve_core
from allocator.solver.exchange import FOUR_CLASSES, TWO_CLASSES, exchange
from allocator.solver.mckp import Limits, Mckp, MckpSolution
from allocator.solver.relaxation import Relaxation, relax

# Exchanges of two classes, as long as they help: at most so many, and fewer where there are many classes, since each
# takes time in proportion to their number.
_MOST_EXCHANGES = 30
_MOST_EXCHANGED_CLASSES = 10_000


class _Found(NamedTuple):
    """The best feasible choice so far, its value, and the problem with the budgets separated so far."""

    choice: Ints
    value: float
    mckp: Mckp

    def after(self, better: Ints | None, mckp: Mckp) -> "_Found":
        """After a step that found a better choice, or None."""
        if better is None:
            return self._replace(mckp=mckp)
        return _Found(better, mckp.value_of(better), mckp)


def solve_mckp(mckp: Mckp, limits: Limits) -> MckpSolution:
    """A feasible choice that is at least as good as the incumbent, and near the bound. Nothing given is changed."""
    relaxation = relax(mckp, limits)
    mckp = relaxation.mckp
    found = _Found(mckp.incumbent, mckp.value_of(mckp.incumbent), mckp)
    if mckp.value_of(relaxation.repaired) > found.value:
        feasible, mckp = mckp.check(relaxation.repaired)
        found = found.after(relaxation.repaired if feasible else None, mckp)
    found = _enlarge_core(_exchange_while_better(found, relaxation, limits), relaxation, limits)
    multipliers = np.zeros(len(found.mckp.capacity))
    multipliers[: len(relaxation.multipliers)] = relaxation.multipliers
    return MckpSolution(found.choice, found.value, relaxation.bound, multipliers, found.mckp)


def _exchange_while_better(found: _Found, relaxation: Relaxation, limits: Limits) -> _Found:
    """Local search from the rounded LP solution, then from the best choice."""
    most = min(_MOST_EXCHANGES, max(2, _MOST_EXCHANGED_CLASSES // len(found.choice)))
    for step in range(most):
        if relaxation.bound - found.value <= limits.gap:
            return found
        centre = found.choice if step else relaxation.rounded
        better, mckp = exchange(found.mckp, relaxation, centre, found.value, TWO_CLASSES)
        found = found.after(better, mckp)
        if better is None and step:
            break
    for from_best in (False, True):
        if relaxation.bound - found.value <= limits.gap:
            return found
        centre = found.choice if from_best else relaxation.rounded
        found = found.after(*exchange(found.mckp, relaxation, centre, found.value, FOUR_CLASSES))
    return found


def _enlarge_core(found: _Found, relaxation: Relaxation, limits: Limits) -> _Found:
    """Ever larger cores, in turn around the rounded LP solution and around the best choice."""
    for turn, (size, width) in enumerate(limits.cores):
        gap = relaxation.bound - found.value
        if gap <= limits.gap:
            break
        centre = found.choice if turn % 2 else relaxation.rounded
        core, complete = build_core(found.mckp, relaxation, centre, found.value, size)
        better, exact, mckp = solve_core(found.mckp, relaxation, centre, core, found.value, width)
        found = found.after(better, mckp)
        if better is None and ((exact and complete) or gap <= limits.gap_after_miss):
            break
    return found
