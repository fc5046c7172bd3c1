"""The multiple-choice knapsack problem (MCKP) with several budgets, as immutable values.

    maximize    sum_j value[x_j, j]
    subject to  sum_j usage[k, x_j, j] <= capacity[k]    for every budget k
                x_j is one of the options of class j

See Kellerer, Pferschy and Pisinger, "Knapsack Problems" (2004), chapter 11. `allocator.solver.solve` solves it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from allocator.solver.arrays import Floats, Ints

ROUNDING = 1e-9  # relative error that float sums of some thousand terms stay below
# Share of the highest value below which two losses count as equal: it is below any difference of quality that profiles
# make (0.01 of 100), and above what the tie-breaking terms of `allocator.solver.lexicographic` add.
_EQUAL_LOSS = 2e-5


class Budget(NamedTuple):
    """A budget: `usage` (options, classes) of every option, and the sum that a choice may come to."""

    usage: Floats
    capacity: float


def no_budget(_: Ints) -> None:
    """Separation for problems in which all budgets are listed."""
    return None


@dataclass(frozen=True, eq=False)
class Mckp:
    """A problem. A choice is an array (classes,) with the option of every class.

    Attributes:
        value: (options, classes), -inf where a class has no such option. Every class has at least one option.
        usage: (budgets, options, classes), finite; negative usage is allowed.
        capacity: (budgets,).
        incumbent: (classes,) a feasible choice, from which the search starts.
        separate: separation oracle for budgets that are too many to list. It returns one that the choice exceeds, or
            None if there is none. It must be pure.
        classes: indices of all classes.
        table: (1 + budgets, options * classes) value, then usage of each budget, with options and classes flattened.
    """

    value: Floats
    usage: Floats
    capacity: Floats
    incumbent: Ints
    separate: Callable[[Ints], Budget | None] = no_budget
    classes: Ints = field(init=False)
    table: Floats = field(init=False)

    def __post_init__(self) -> None:
        table = np.concatenate((self.value.reshape(1, -1), self.usage.reshape(len(self.capacity), -1)))
        object.__setattr__(self, "classes", np.arange(self.value.shape[1]))
        object.__setattr__(self, "table", table)

    @cached_property
    def equal_loss(self) -> float:
        """Losses that differ by less are taken for equal."""
        return _EQUAL_LOSS * float(self.value.max())

    def flat_index(self, choice: Ints) -> Ints:
        """(classes,) the column of `table` for each class's option."""
        index: Ints = choice * len(self.classes) + self.classes
        return index

    def totals(self, choice: Ints) -> Floats:
        """(1 + budgets,) value of a choice, then its usage of each listed budget."""
        totals: Floats = self.table.take(self.flat_index(choice), axis=1).sum(axis=1)
        return totals

    def value_of(self, choice: Ints) -> float:
        """The objective."""
        return float(self.table[0].take(self.flat_index(choice)).sum())

    def within_capacity(self, choice: Ints) -> bool:
        """Whether a choice keeps all listed budgets."""
        return bool((self.totals(choice)[1:] <= self.capacity).all())

    def with_budget(self, budget: Budget) -> "Mckp":
        """The problem with one more listed budget."""
        usage = np.concatenate((self.usage, budget.usage[None]))
        return replace(self, usage=usage, capacity=np.append(self.capacity, budget.capacity))

    def check(self, choice: Ints) -> "tuple[bool, Mckp]":
        """Whether a choice is feasible; and the problem, with the budget that separation found to be exceeded."""
        if not self.within_capacity(choice):
            return False, self
        budget = self.separate(choice)
        return (True, self) if budget is None else (False, self.with_budget(budget))


class Limits(NamedTuple):
    """How long to search.

    Attributes:
        pricing_steps: columns generated for the LP relaxation.
        lp_gap: share of the Lagrangian bound that the LP solution may fall short of it.
        gap: the search ends when the value is at most this far from the bound.
        gap_after_miss: likewise, after a core in which no better choice was found.
        cores: for each core, how many options it has, and how many partial choices the dynamic programme keeps.
    """

    pricing_steps: int
    lp_gap: float
    gap: float
    gap_after_miss: float
    cores: tuple[tuple[int, int], ...]


class MckpSolution(NamedTuple):
    """A feasible choice and the certificate of how good it is.

    Attributes:
        choice: (classes,) option of every class.
        value: the objective.
        bound: Lagrangian upper bound on the value of every feasible choice.
        multipliers: (budgets,) Lagrange multipliers, >= 0, at which `bound` is attained.
        mckp: the problem with all budgets that separation added; multipliers refer to these.
    """

    choice: Ints
    value: float
    bound: float
    multipliers: Floats
    mckp: Mckp
