"""Dominance reduction of the multiple-choice knapsack problem."""

import numpy as np
from numpy.typing import NDArray

from allocator.solver.arrays import Floats


def undominated(value: Floats, usages: tuple[Floats, ...]) -> NDArray[np.bool_]:
    """(options, classes) the options worth keeping; of equal options of a class, the first.

    An option is dominated if another of its class has at least its value and uses no more of any budget. Some optimal
    choice has none of those. (Options off the LP hull can't be dropped: an optimal choice may need them.)

    Args:
        value: (options, classes).
        usages: for each budget (options, classes), inf where an option is impossible.
    """
    kept = np.logical_and.reduce([np.isfinite(usage) for usage in usages])
    for option in range(len(value)):
        for other in range(len(value)):
            if other != option:
                dominated = value[other] >= value[option]
                for usage in usages:
                    dominated &= usage[other] <= usage[option]
                kept[option] &= ~(dominated & kept[other])
    return kept
