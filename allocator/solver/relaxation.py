"""LP relaxation by column generation (Dantzig and Wolfe 1960): multipliers, bound, and a choice rounded from it.

At any multipliers, the sum over classes of the highest reduced value (value less priced usage), plus the priced
capacities, bounds the value of every feasible choice (Lagrangian relaxation). The lowest such bound is the value of the
LP relaxation, which the convex combination of choices found by column generation attains. Only options on the LP hull
of their class maximize a reduced value, so no reduction to the hull is needed beforehand.
"""

from typing import NamedTuple

import numpy as np

from allocator.solver.arrays import Floats, Ints
from allocator.solver.mckp import Limits, Mckp
from allocator.solver.rounding import repair, round_columns
from allocator.solver.simplex import Column, RestrictedMaster

# Budgets with multipliers: pricing costs grow with each, and later ones bind by little (a search adds as many again).
MOST_PRICED = 10


class Relaxation(NamedTuple):
    """The solved LP relaxation.

    Attributes:
        mckp: the problem with the budgets that separation added.
        bound: Lagrangian bound at the multipliers.
        multipliers: (budgets,).
        loss: (options, classes) what each option's reduced value falls short of its class's highest. What a choice
            falls short of the bound is the sum of its losses and of the priced slack that it leaves.
        rounded: (classes,) a choice near the LP solution; it need not be feasible.
        repaired: (classes,) the same after `repair`; it need not be feasible either.
    """

    mckp: Mckp
    bound: float
    multipliers: Floats
    loss: Floats
    rounded: Ints
    repaired: Ints


def relax(mckp: Mckp, limits: Limits) -> Relaxation:
    """Solve the LP relaxation, separating budgets as long as the repaired choice exceeds one (cutting planes)."""
    columns: list[Column] = []
    while True:
        bound, multipliers, loss, columns = _generate_columns(mckp, columns, limits)
        rounded = round_columns(mckp, columns)
        repaired = repair(mckp, rounded, loss)
        relaxation = Relaxation(mckp, bound, multipliers, loss, rounded, repaired)
        if len(mckp.capacity) >= MOST_PRICED:
            return relaxation
        _, extended = mckp.check(repaired)
        if extended is mckp:
            return relaxation
        mckp = extended


def _generate_columns(mckp: Mckp, columns: list[Column], limits: Limits) -> tuple[float, Floats, Floats, list[Column]]:
    """Bound, multipliers, losses and LP solution. `columns` of a problem with fewer budgets are a warm start."""
    value, usage = mckp.table[0], mckp.table[1:]
    capacity = mckp.capacity.tolist()
    bound, multipliers, best_reduced = np.inf, np.zeros(len(capacity)), mckp.value
    master = RestrictedMaster(capacity, mckp.incumbent, mckp.totals(mckp.incumbent).tolist())
    for column in columns:
        master.add(column.choice, mckp.totals(column.choice).tolist())
    for _ in range(limits.pricing_steps):
        duals, objective = master.solve()
        if bound < np.inf and objective >= bound - limits.lp_gap * abs(bound):
            break
        prices = np.array(duals)
        reduced = (value - prices @ usage).reshape(mckp.value.shape)
        choice = reduced.argmax(axis=0)
        totals = mckp.totals(choice).tolist()
        priced_slack = sum(p * (c - u) for p, c, u in zip(duals, capacity, totals[1:], strict=True))
        if totals[0] + priced_slack < bound:
            bound, multipliers, best_reduced = totals[0] + priced_slack, prices, reduced
        if not master.add(choice, totals):
            break
    return bound, multipliers, best_reduced.max(axis=0) - best_reduced, master.columns
