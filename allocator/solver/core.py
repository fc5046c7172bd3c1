"""Core enlargement: dynamic programming over the options that may still improve a choice (Pisinger 1995).

D. Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", EJOR 83 (1995); here with several budgets
and with a limit on the states that are kept.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from allocator.solver.arrays import Floats, Ints
from allocator.solver.exchange import more_loss
from allocator.solver.mckp import ROUNDING, Mckp
from allocator.solver.relaxation import Relaxation

# Budgets that states are checked against while they grow; a complete choice is checked against all.
_MOST_CHECKED_BUDGETS = 5
# Complete states that are checked with separation, best first.
_MOST_CHECKED = 8
# Value and reduced value are compared in steps of 1e-7: states that agree in both differ by float errors only.
_STATE_RESOLUTION = 1e7
# To tell whether classes are equal, values are rounded to this many times the tolerance for losses.
_EQUAL_VALUE = 4
# Equal classes are changed in bundles of 1, 2, 4 and 8: any number up to 15 is a sum of these.
_BUNDLES = tuple(pairwise((0, 1, 3, 7, 15)))


class CoreClass(NamedTuple):
    """Equal classes that change together, and the options that they may change to."""

    members: Ints
    options: list[int]


class _Stages(NamedTuple):
    """The stages of the dynamic programme, one for each core class.

    Attributes:
        core: the classes.
        starts: (stages,) first column of each stage in `change`, which stands for no change; its options follow.
        change: (2 + budgets, columns) what a change adds to reduced value, value and usage.
    """

    core: list[CoreClass]
    starts: Ints
    change: Floats


def build_core(
    mckp: Mckp, relaxation: Relaxation, centre: Ints, value: float, size: int
) -> tuple[list[CoreClass], bool]:
    """The `size` options of the least loss; and whether these are all that a better choice can have.

    Of equal classes that have the same option in `centre`, one stands for all.
    """
    more = more_loss(mckp, relaxation, centre, value)
    kind = _kinds(mckp) * len(mckp.value) + centre
    candidates = np.flatnonzero(more < np.inf)
    candidates = candidates[np.argsort(more.ravel()[candidates], kind="stable")]
    option, of_class = np.divmod(candidates, len(mckp.classes))
    first = np.sort(np.unique(kind[of_class] * len(mckp.value) + option, return_index=True)[1])
    complete = len(first) == len(candidates) <= size
    options: dict[int, list[int]] = {}
    for of_kind, other in zip(kind[of_class[first[:size]]].tolist(), option[first[:size]].tolist(), strict=True):
        options.setdefault(of_kind, []).append(other)
    core = [
        CoreClass(equal[start:end], options[key])
        for key in options
        for equal in [np.flatnonzero(kind == key)]
        for start, end in _BUNDLES
        if start < len(equal)
    ]
    return core, complete


def _kinds(mckp: Mckp) -> Ints:
    """(classes,) a number for each class, the same for classes of equal usage and (nearly) equal values."""
    values = np.where(np.isfinite(mckp.value), mckp.value, -1.0) / (_EQUAL_VALUE * mckp.equal_loss)
    keys = np.vstack((np.rint(values), *mckp.usage)).T + 0.0  # + 0.0 makes -0.0 equal to 0.0, also as bytes
    data, size = keys.tobytes(), keys.itemsize * keys.shape[1]
    kinds: dict[bytes, int] = {}
    return np.array([kinds.setdefault(data[at : at + size], len(kinds)) for at in range(0, len(data), size)])


def solve_core(
    mckp: Mckp, relaxation: Relaxation, centre: Ints, core: list[CoreClass], value: float, width: int
) -> tuple[Ints | None, bool, Mckp]:
    """The best choice found that differs from `centre` in `core` only and whose value is over `value`, or None.

    Stage by stage, all states (partial choices) are extended by all options of a core class. States are dropped that
    can't exceed `value` by the Lagrangian bound, or that can't keep the budgets; of the rest, the `width` with the
    highest reduced value are kept.

    Returns:
        The choice, whether nothing was lost by the limits, and the extended problem.
    """
    if not core:
        return None, True, mckp
    slack = mckp.capacity - mckp.totals(centre)[1:]
    multipliers = np.zeros(len(slack))
    multipliers[: len(relaxation.multipliers)] = relaxation.multipliers
    stages = _stages(mckp, multipliers, centre, core)
    checked = _checked_budgets(stages, multipliers, slack)
    enough = value - mckp.value_of(centre) + ROUNDING * (1 + abs(value))
    states, history, exact = _extend(stages, checked, slack, enough - float(multipliers @ slack), width)
    better = np.flatnonzero(states[1] > enough)
    for state in better[np.argsort(-states[1, better], kind="stable")[:_MOST_CHECKED]].tolist():
        choice = _backtrack(centre, stages, history, state)
        feasible, mckp = mckp.check(choice)
        if feasible and mckp.value_of(choice) > value:
            return choice, exact, mckp
    return None, exact and not len(better), mckp


def _stages(mckp: Mckp, multipliers: Floats, centre: Ints, core: list[CoreClass]) -> _Stages:
    """Stages by descending priced usage: small changes, at the end, fill what large ones leave."""
    sizes = np.array([1 + len(core_class.options) for core_class in core])
    starts = np.cumsum(sizes) - sizes
    first = np.repeat([core_class.members[0] for core_class in core], sizes)
    own = centre[first]
    option = own.copy()
    for core_class, start, size in zip(core, starts.tolist(), sizes.tolist(), strict=True):
        option[start + 1 : start + size] = core_class.options
    change = np.empty((1 + len(mckp.table), len(option)))
    width = len(mckp.classes)
    change[1:] = mckp.table[:, option * width + first] - mckp.table[:, own * width + first]
    change[0] = change[1] - multipliers @ change[2:]
    change *= np.repeat([len(core_class.members) for core_class in core], sizes)
    longest = np.maximum.reduceat(np.abs(change[1] - change[0]), starts)
    order = np.argsort(-longest, kind="stable")
    columns = np.argsort(np.repeat(-longest, sizes), kind="stable")
    ordered = sizes[order]
    return _Stages([core[i] for i in order.tolist()], np.cumsum(ordered) - ordered, change[:, columns])


def _checked_budgets(stages: _Stages, multipliers: Floats, slack: Floats) -> Ints:
    """Budgets that have a price or that the core can exceed, at most a few: priced ones first, then by the excess."""
    excess = np.maximum.reduceat(stages.change[2:], stages.starts, axis=1).sum(axis=1) - slack
    order = np.lexsort((-excess, multipliers <= 0))[:_MOST_CHECKED_BUDGETS]
    return order[(multipliers[order] > 0) | (excess[order] > 0)]


def _extend(stages: _Stages, checked: Ints, slack: Floats, least: float, width: int) -> tuple[Floats, list[Ints], bool]:
    """Run the dynamic programme.

    Args:
        checked: budgets that states must keep.
        least: reduced value that a complete state must reach.

    Returns:
        (2 + checked budgets, states) reduced value, value and usage of the complete states; for every stage the flat
        (earlier state, change) index of its states; and whether no state was dropped for the width.
    """
    change = np.concatenate((stages.change[:2], stages.change[2 + checked]))
    limit = slack[checked, None]
    # The highest reduced value and the least usage that later stages can add.
    ahead = np.minimum.reduceat(change, stages.starts, axis=1)
    ahead[0] = np.maximum.reduceat(change[0], stages.starts)
    ahead = np.cumsum(ahead[:, ::-1], axis=1)[:, ::-1] - ahead
    reduced_at_least = (least - ahead[0]).tolist()
    usage_at_most = limit - ahead[2:]
    states = np.zeros((len(change), 1))
    history = []
    exact = True
    bounds = [*stages.starts.tolist(), change.shape[1]]
    for stage, (start, end) in enumerate(pairwise(bounds)):
        states = (states[:, :, None] + change[:, None, start:end]).reshape(len(change), -1)
        keep = states[0] >= reduced_at_least[stage]
        keep &= (states[2:] <= usage_at_most[:, stage, None]).all(axis=0)
        kept = np.flatnonzero(keep)
        if len(kept) > width:
            kept = kept[_undominated(states[1:, kept]) if len(checked) == 1 else _distinct(states[:2, kept])]
        if len(kept) > width:
            exact = False
            kept = kept[np.argpartition(-states[0, kept], width)[:width]]
        states = states[:, kept]
        history.append(kept)
    return states, history, exact


def _undominated(states: Floats) -> Ints:
    """Indices of the states, (2, states) value and usage, that no other of less or equal usage equals in value."""
    order = np.lexsort((-states[0], states[1]))
    value = states[0, order]
    return order[np.append(True, value[1:] > np.maximum.accumulate(value)[:-1] + ROUNDING)]


def _distinct(states: Floats) -> Ints:
    """Indices of states, (2, states) reduced value and value, without repetitions; equal classes make many."""
    reduced, value = np.rint(states * _STATE_RESOLUTION)
    pairs = reduced + 1j * value  # complex numbers are sorted in lexicographic order
    order = np.argsort(pairs)
    pairs = pairs[order]
    return order[np.append(True, pairs[1:] != pairs[:-1])]


def _backtrack(centre: Ints, stages: _Stages, history: list[Ints], state: int) -> Ints:
    """The choice of a complete state."""
    choice = centre.copy()
    for core_class, kept in zip(reversed(stages.core), reversed(history), strict=True):
        state, position = divmod(int(kept[state]), 1 + len(core_class.options))
        if position:
            choice[core_class.members] = core_class.options[position - 1]
    return choice
