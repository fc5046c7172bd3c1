"""Multiple choice under budgets, fast: an option for every row, the highest value, no budget overrun; and a bound.

Budgets get prices (Lagrange multipliers). At any prices, the sum of every row's best reduced value bounds the value of
all choices; `lower_bound` looks for the prices of the lowest bound. An option's loss is what it falls short of its
row's best at those prices. A choice that is better than the best known one has no option whose loss exceeds the gap
between the bound and that one: so `improve` enumerates products of options of little loss until the gap is closed or
the work is used up. (Dyer 1984; Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", 1995.)
"""

from collections.abc import Callable, Sequence

import numpy as np

from allocator.rows import Floats, Ints

_ROUNDING = 1e-9
_LINE_STEPS = 40
_LEAST_PROGRESS = 1e-4  # of the bound, for which another sweep over the prices is worth its time
_TRIED = 4  # of a product, how many of its best are checked against the budgets that have no price
_RAISES = (1.003, 1.01, 1.03, 1.1, 1.3, 2.0, 10.0)


class Choice:
    """One option for every row, under budgets.

    Args:
        value: (options, rows), -inf where a row has no such option; every row has one.
        uses: (budgets, options, rows); may be negative.
        budgets: (budgets,) how much of each may be used.
        holds: whether a choice keeps further budgets, which have no price.
    """

    def __init__(self, value: Floats, uses: Floats, budgets: Floats, holds: Callable[[Ints], bool]) -> None:
        self.value = value
        self.uses = uses
        self.budgets = budgets
        self.prices = np.zeros(len(budgets))
        self.bound = np.inf
        self._holds = holds
        self._columns = np.arange(value.shape[1])
        self._flat_value = value.ravel()
        self._flat_uses = uses.reshape(len(budgets), -1)

    def worth(self, choice: Ints) -> float:
        """The value of a choice."""
        return float(self._flat_value.take(self._at(choice)).sum())

    def used(self, choice: Ints) -> Floats:
        """How much a choice uses of each budget."""
        used: Floats = self._flat_uses.take(self._at(choice), axis=1).sum(axis=1)
        return used

    def fits(self, choice: Ints) -> bool:
        """Whether a choice keeps all budgets."""
        return bool((self.used(choice) <= self.budgets).all()) and self._holds(choice)

    def lower_bound(self, sweeps: int) -> Ints:
        """Lower the bound: move each price in turn to where the bound is lowest. Returns the choice at these prices."""
        choice = self.value.argmax(axis=0)
        for _ in range(sweeps if len(self.budgets) > 1 else 1):
            before = self.bound
            for budget in range(len(self.budgets)):
                choice = self._move_price(budget)
            if before - self.bound <= _LEAST_PROGRESS * abs(self.bound):
                break
        return choice

    def rounded(self, choice: Ints) -> Ints | None:
        """A choice that keeps all budgets, from one that may not, by raising prices; None if that doesn't help."""
        if self.fits(choice):
            return choice
        for factor in _RAISES:
            choice = self._reduced(self.prices * factor).argmax(axis=0)
            if self.fits(choice):
                return choice
        return None

    def improve(self, best: Ints, near_enough: float, products: Sequence[int]) -> Ints:
        """A choice at least as good as `best`, which keeps all budgets.

        Args:
            near_enough: stop when the value is at most this far from the bound.
            products: how many combinations to enumerate, in each round.
        """
        reduced = self._reduced(self.prices)
        loss = reduced.max(axis=0) - reduced
        n = len(self._columns)
        worth = self.worth(best)
        random = None
        for round_, product in enumerate(products):
            gap = self.bound - worth
            if gap <= near_enough:
                break
            other = loss.copy()
            other[best, self._columns] = np.inf
            flat = other.ravel()
            candidates = np.flatnonzero(flat < gap)
            rank = flat[candidates]
            if round_:
                # The same few again would find nothing new: others, of little loss still, by lot.
                random = random or np.random.default_rng(round_)
                rank = (rank + gap / 16) * random.random(len(rank))
            core, complete = _core(candidates[np.argsort(rank, kind="stable")], n, product)
            found = self._best_of(best, core)
            if found is not None:
                best = found
                worth = self.worth(best)
            elif complete:
                break
        return best

    def _at(self, choice: Ints) -> Ints:
        at: Ints = choice * len(self._columns) + self._columns
        return at

    def _reduced(self, prices: Floats) -> Floats:
        """Values less what is used at these prices."""
        reduced = self.value
        for use, price in zip(self.uses, prices.tolist(), strict=True):
            if price:
                reduced = reduced - price * use
        return reduced

    def _move_price(self, budget: int) -> Ints:
        """Move one price to where the bound is lowest, the others given; returns a choice there that keeps this budget.

        As a function of the price, the value of each choice is a line, and the bound is the highest of all lines. Where
        a line that overruns the budget crosses one that keeps it is the next price to try, until no line is higher.
        """
        others = self.prices.copy()
        others[budget] = 0.0
        base, use, limit = self._reduced(others), self.uses[budget], float(self.budgets[budget])
        flat_base, flat_use = base.ravel(), self._flat_uses[budget]

        def line(reduced: Floats) -> tuple[Ints, float, float]:
            choice = reduced.argmax(axis=0)
            at = self._at(choice)
            return choice, float(flat_base.take(at).sum()), float(flat_use.take(at).sum())

        paid = float(others @ self.budgets)
        choice, over_value, over_use = line(base)
        if over_use <= limit:
            self.prices[budget] = 0.0
            self.bound = min(self.bound, over_value + paid)
            return choice
        finite = np.isfinite(base)
        kept, kept_value, kept_use = line(np.where(use == np.where(finite, use, np.inf).min(axis=0), base, -np.inf))
        if kept_use > limit:
            return kept  # nothing keeps this budget
        price = float(self.prices[budget])
        for _ in range(_LINE_STEPS):
            crossing = (over_value - kept_value) / (over_use - kept_use)
            if not price:
                price = crossing
            choice, value, used = line(base - price * use)
            highest = value - price * used
            if price == crossing and highest <= over_value - price * over_use + _ROUNDING * (1 + abs(highest)):
                break
            if used > limit:
                over_value, over_use = value, used
            else:
                kept, kept_value, kept_use = choice, value, used
            price = 0.0
        self.prices[budget] = price = (over_value - kept_value) / (over_use - kept_use)
        self.bound = min(self.bound, float((base - price * use).max(axis=0).sum()) + price * limit + paid)
        return kept

    def _best_of(self, best: Ints, core: dict[int, list[int]]) -> Ints | None:
        """The best combination of the options of `core`, the other rows as in `best`; None if that is `best` itself."""
        slack = self.budgets - self.used(best)
        totals = np.zeros((1 + len(slack), 1))
        for row, options in core.items():
            own = int(best[row])
            steps = np.empty((len(totals), 1 + len(options)))
            steps[:, 0] = 0.0
            steps[0, 1:] = self.value[options, row] - self.value[own, row]
            steps[1:, 1:] = self.uses[:, options, row] - self.uses[:, own, row][:, None]
            totals = (totals[:, :, None] + steps[:, None, :]).reshape(len(totals), -1)
        gain = totals[0]
        fitting = np.flatnonzero(
            (gain > _ROUNDING * (1 + abs(self.bound))) & (totals[1:] <= slack[:, None]).all(axis=0)
        )
        for index in fitting[np.argsort(-gain[fitting], kind="stable")[:_TRIED]].tolist():
            choice = best.copy()
            for row, options in reversed(core.items()):
                index, position = divmod(index, 1 + len(options))
                if position:
                    choice[row] = options[position - 1]
            if self.fits(choice):
                return choice
        return None


def _core(ranked: Ints, n: int, product: int) -> tuple[dict[int, list[int]], bool]:
    """Options of rows (of `n`), by rank, while there are at most `product` combinations; and whether all got in."""
    core: dict[int, list[int]] = {}
    size = 1
    for flat in ranked.tolist():
        option, row = divmod(flat, n)
        have = 1 + len(core.get(row, ()))
        if size // have * (have + 1) > product:
            return core, False
        size = size // have * (have + 1)
        core.setdefault(row, []).append(option)
    return core, True
