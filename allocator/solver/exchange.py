"""Local search: the best exchange of options in two classes at once, or in four."""

from typing import NamedTuple

import numpy as np

from allocator.solver.arrays import Floats, Ints
from allocator.solver.mckp import ROUNDING, Mckp
from allocator.solver.relaxation import MOST_PRICED, Relaxation

# Pairs of changes of each half of the classes that are combined to exchanges of four: 150 by 150 combinations take
# about as long as the 64 by 64 of two single changes.
_MOST_PAIRS = 150
# Changes considered for each candidate: equal losses are common, and of these most are dropped.
_CONSIDERED = 4
# Best exchanges that are checked with separation. The rest are worth less and mostly exceed the same budget.
_MOST_CHECKED = 8


class Neighbourhood(NamedTuple):
    """Which exchanges are tried.

    Attributes:
        candidates: changes (an option of a class) that are combined, those of the least loss.
        equal: how many of them may have equal losses, as those of equal classes do: more add no new combinations.
        paired: combine pairs of changes instead of single ones.
    """

    candidates: int
    equal: int
    paired: bool


TWO_CLASSES = Neighbourhood(64, 2, paired=False)
FOUR_CLASSES = Neighbourhood(128, 4, paired=True)


def exchange(
    mckp: Mckp, relaxation: Relaxation, centre: Ints, value: float, neighbourhood: Neighbourhood
) -> tuple[Ints | None, Mckp]:
    """The best feasible neighbour of `centre` found whose value is over `value`, or None; and the extended problem.

    If the check finds a budget that is exceeded, the neighbourhood is searched again with this budget listed.
    """
    while True:
        found, extended = _search(mckp, relaxation, centre, value, neighbourhood)
        if found is not None or extended is mckp or len(mckp.capacity) >= 2 * MOST_PRICED:
            return found, extended
        mckp = extended


def more_loss(mckp: Mckp, relaxation: Relaxation, centre: Ints, value: float) -> Floats:
    """(options, classes) loss of every option beyond that of `centre`'s; inf for the latter.

    Also inf where the loss alone is the whole gap from `value` to the bound: no better choice has such an option
    (reduction by reduced costs).
    """
    loss = relaxation.loss
    more = np.where(loss < relaxation.bound - value, loss - loss[centre, mckp.classes], np.inf)
    more[centre, mckp.classes] = np.inf
    return more


def _search(
    mckp: Mckp, relaxation: Relaxation, centre: Ints, value: float, neighbourhood: Neighbourhood
) -> tuple[Ints | None, Mckp]:
    """One pass of `exchange`; it ends when separation adds a budget."""
    more = more_loss(mckp, relaxation, centre, value).ravel()
    changes, losses = _cheapest_changes(more, neighbourhood, mckp.equal_loss)
    changed = changes % len(mckp.classes)
    # What every change adds to value and usage; the last is no change.
    delta = np.zeros((len(mckp.table), len(changes) + 1))
    delta[:, :-1] = mckp.table[:, changes] - mckp.table[:, mckp.flat_index(centre)[changed]]
    if neighbourhood.paired:
        halves = _cheapest_pairs(changed, losses, 0), _cheapest_pairs(changed, losses, 1)
        deltas = [delta[:, one] + delta[:, other] for one, other in halves]
    else:
        single = np.arange(len(changes) + 1)
        halves = ((single, np.full(len(single), len(changes))),) * 2
        deltas = [delta, delta]
    totals = mckp.totals(centre)
    gain = np.add.outer(deltas[0][0], deltas[1][0])
    better = gain > value - totals[0] + ROUNDING * (1 + abs(value))
    if not neighbourhood.paired:
        distinct = np.append(changed, -1)
        better &= distinct[:, None] > distinct  # each combination once, and none of a class with itself
    for first, second, slack in zip(deltas[0][1:], deltas[1][1:], (mckp.capacity - totals[1:]).tolist(), strict=True):
        better &= np.add.outer(first, second) <= slack
    flat = np.flatnonzero(better)
    gain = gain.ravel()[flat]
    for _ in range(min(_MOST_CHECKED, len(flat))):
        best = int(gain.argmax())
        choice = centre.copy()
        for move, half in zip(divmod(int(flat[best]), better.shape[1]), halves, strict=True):
            for change in (half[0][move], half[1][move]):
                if change < len(changes):
                    choice[changed[change]] = changes[change] // len(mckp.classes)
        feasible, extended = mckp.check(choice)
        if feasible and mckp.value_of(choice) > value:
            return choice, mckp
        if extended is not mckp:
            return None, extended
        gain[best] = -np.inf
    return None, mckp


def _cheapest_changes(more: Floats, neighbourhood: Neighbourhood, equal_loss: float) -> tuple[Ints, Floats]:
    """Flat indices of changes by ascending loss, some of those of equal loss, none of infinite loss; and the losses."""
    most = min(_CONSIDERED * neighbourhood.candidates, len(more))
    changes = np.argpartition(more, most - 1)[:most]
    losses = more[changes]
    order = np.argsort(losses, kind="stable")
    losses = losses[order]
    equal = neighbourhood.equal
    distinct = losses < np.inf
    with np.errstate(invalid="ignore"):  # inf - inf
        distinct[equal:] &= losses[equal:] - losses[:-equal] > equal_loss
    chosen = np.flatnonzero(distinct)[: neighbourhood.candidates]
    return changes[order[chosen]], losses[chosen]


def _cheapest_pairs(of_class: Ints, more: Floats, parity: int) -> tuple[Ints, Ints]:
    """Pairs of changes in classes of even (0) or odd (1) index, of the least loss: indices of both; the last is none.

    Pairs of one half have no class in common with those of the other.
    """
    none = len(of_class)
    mine = np.append(np.flatnonzero(of_class % 2 == parity), none)
    one, other = (mine[index] for index in np.triu_indices(len(mine)))
    more, of_class = np.append(more, 0.0), np.append(of_class, -1)
    loss = more[one] + more[other]
    loss[(of_class[one] == of_class[other]) & (of_class[one] >= 0)] = np.inf
    kept = np.flatnonzero(loss < np.inf)
    if len(kept) > _MOST_PAIRS:
        kept = kept[np.argpartition(loss[kept], _MOST_PAIRS)[:_MOST_PAIRS]]
    return one[kept], other[kept]
