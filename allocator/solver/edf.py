"""Feasibility of cloud time under earliest deadline first (EDF), as budgets.

Work that may be divided among workers and preempted meets all deadlines under EDF, if it can at all, and it can if and
only if, for every deadline d, the work due by d is at most the worker time until d (the processor demand criterion,
Baruah et al. 1990). That is a chain of nested budgets, one for every deadline.
"""

from collections.abc import Callable

import numpy as np

from allocator.solver.arrays import Floats, Ints
from allocator.solver.mckp import Budget, no_budget

# Budgets are divided by their size; one of no time at all by this instead.
_LEAST_MS = 1e-9


def demand_ms(stage: Ints, cloud_ms: Floats, deadlines: int) -> Floats:
    """(deadlines,) work due by each deadline.

    Args:
        stage: (classes,) index of each class's deadline; `deadlines` if it is in no budget.
        cloud_ms: (classes,) work.
        deadlines: how many there are.
    """
    due_ms: Floats = np.bincount(stage, cloud_ms, deadlines)[:deadlines].cumsum()
    return due_ms


def edf_separation(stage: Ints, cloud_ms: Floats, budget_ms: Floats) -> Callable[[Ints], Budget | None]:
    """A separation oracle: the budget that a choice exceeds by the largest share, that is, a violated prefix of EDF.

    Args:
        stage: (classes,) as for `demand_ms`.
        cloud_ms: (options, classes).
        budget_ms: (deadlines,) worker time until each deadline.
    """
    if not len(budget_ms):
        return no_budget
    classes = np.arange(len(stage))
    scale_ms = np.maximum(budget_ms, _LEAST_MS)

    def separate(choice: Ints) -> Budget | None:
        excess_ms = demand_ms(stage, cloud_ms[choice, classes], len(budget_ms)) - budget_ms
        worst = int((excess_ms / scale_ms).argmax())
        if excess_ms[worst] <= 0:
            return None
        usage = np.where(stage <= worst, cloud_ms / scale_ms[worst], 0.0)
        return Budget(usage, float(budget_ms[worst] / scale_ms[worst]))

    return separate
