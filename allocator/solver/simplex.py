"""The restricted master problem of column generation: a revised simplex method for few budgets."""

from typing import NamedTuple

from allocator.solver.arrays import Ints
from allocator.solver.mckp import ROUNDING


class Column(NamedTuple):
    """A choice with its share in a convex combination of choices."""

    share: float
    choice: Ints


class RestrictedMaster:
    """The convex combination of known choices with the highest value that keeps the budgets on average.

    Constraints are the budgets and convexity (shares add up to 1). The basis starts with all slack variables and one
    feasible choice. There are at most a dozen constraints: plain Python is faster than arrays.
    """

    def __init__(self, capacity: list[float], choice: Ints, totals: list[float]) -> None:
        """`choice` is feasible; `totals` are its value and its usage of each budget."""
        value, *used = totals
        m = len(capacity)
        self._inverse = [[float(i == j) for j in range(m)] + [-used[i]] for i in range(m)] + [[0.0] * m + [1.0]]
        self._level = [c - u for c, u in zip(capacity, used, strict=True)] + [1.0]
        self._value = [0.0] * m + [value]
        self._choice: list[Ints | None] = [*[None] * m, choice]

    @property
    def columns(self) -> list[Column]:
        """The choices of positive share."""
        basis = zip(self._level, self._choice, strict=True)
        return [Column(level, choice) for level, choice in basis if choice is not None and level > ROUNDING]

    def solve(self) -> tuple[list[float], float]:
        """Pivot slack variables in while that helps; the dual value of each budget, and the objective."""
        while True:
            basis = [(value, row) for value, row in zip(self._value, self._inverse, strict=True) if value]
            dual = [sum(value * row[j] for value, row in basis) for j in range(len(self._level))]
            least = min(dual[:-1])
            j = dual.index(least)
            if least >= -ROUNDING * (1 + abs(dual[-1])) or not self._pivot([r[j] for r in self._inverse], None, 0.0):
                objective = sum(map(float.__mul__, self._value, self._level))
                return [max(price, 0.0) for price in dual[:-1]], objective

    def add(self, choice: Ints, totals: list[float]) -> bool:
        """Enter a choice into the basis; False if no pivot is numerically safe."""
        column = [*totals[1:], 1.0]
        return self._pivot([sum(map(float.__mul__, row, column)) for row in self._inverse], choice, totals[0])

    def _pivot(self, column: list[float], choice: Ints | None, value: float) -> bool:
        """Exchange the basic variable of the least ratio for a column, given in terms of the basis."""
        ratios = [(level / c, i) for i, (level, c) in enumerate(zip(self._level, column, strict=True)) if c > ROUNDING]
        if not ratios:
            return False
        ratio, leaving = min(ratios)
        pivot = column[leaving]
        entering = self._inverse[leaving] = [x / pivot for x in self._inverse[leaving]]
        for i, factor in enumerate(column):
            if i != leaving and factor:
                self._inverse[i] = [x - factor * y for x, y in zip(self._inverse[i], entering, strict=True)]
                self._level[i] -= factor * ratio
        self._level[leaving] = ratio
        self._value[leaving] = value
        self._choice[leaving] = choice
        return True
