"""From the LP solution to a choice: rounding by shares, then greedy repair of exceeded budgets."""

from collections.abc import Sequence

import numpy as np

from allocator.solver.arrays import Floats, Ints
from allocator.solver.mckp import ROUNDING, Mckp
from allocator.solver.simplex import Column

# Options changed by a repair. A basic LP solution is fractional in at most one class a budget, so few are enough.
_MOST_REPAIRS = 30


def round_columns(mckp: Mckp, columns: Sequence[Column]) -> Ints:
    """A choice that takes each column's option in its share of the classes, where the columns differ.

    Classes in which columns differ alike are neighbours, ordered by usage of the first budget: rounding errors even out
    among them, so the choice is near the LP solution in every budget. It need not be feasible.
    """
    ordered = sorted(columns, key=lambda column: -column.share)
    choice = ordered[0].choice.copy()
    options = np.array([column.choice for column in ordered])
    classes = np.flatnonzero((options != choice).any(axis=0))
    classes = classes[np.lexsort((mckp.usage[0][choice[classes], classes], *options[:, classes]))]
    share_left = 1.0
    for share, column in ordered[:0:-1]:
        quota = np.floor(np.arange(len(classes) + 1) * (share / share_left) + 0.5)
        mine = quota[1:] > quota[:-1]
        choice[classes[mine]] = column[classes[mine]]
        classes, share_left = classes[~mine], share_left - share
    return choice


def repair(mckp: Mckp, choice: Ints, loss: Floats) -> Ints:
    """Change one option after the other, by the least loss for the excess removed, until the listed budgets hold.

    It ends with an infeasible choice if no option helps, or after a fixed number of changes.
    """
    choice = choice.copy()
    capacity = mckp.capacity[:, None]
    for _ in range(_MOST_REPAIRS):
        index = mckp.flat_index(choice)
        used = mckp.table.take(index, axis=1).sum(axis=1)[1:, None]
        excess = float(np.maximum(used - capacity, 0.0).sum())
        if excess <= 0:
            break
        without = used[:, :, None] - mckp.usage[:, choice, mckp.classes][:, None, :] - capacity[:, :, None]
        removed = excess - np.maximum(without + mckp.usage, 0.0).sum(axis=0)
        removed[mckp.value == -np.inf] = 0.0
        more_loss = np.maximum(loss - loss.ravel().take(index) + ROUNDING, ROUNDING)
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(removed > ROUNDING * excess, more_loss / removed, np.inf)
        option, changed = divmod(int(rate.argmin()), len(mckp.classes))
        if rate[option, changed] == np.inf:
            break
        choice[changed] = option
    return choice
