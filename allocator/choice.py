"""Multiple choice under budgets, fast: an option for every row, the highest value, no budget overrun; and a bound.

Budgets get prices. At any prices, the sum of every row's best reduced value bounds the value of all choices; the lowest
such bound is what a mixture of choices could reach, and `relax` finds both together (Dantzig and Wolfe 1960). An
option's loss is what it falls short of its row's best at those prices. A choice that is better than the best known one
has no option whose loss exceeds the gap between the bound and that one: so `improve` combines only options of
little loss until the gap is closed or the work is used up (Pisinger, "A minimal algorithm for the multiple-choice
knapsack problem", 1995, with one budget).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from allocator.rows import Floats, Ints

_ROUNDING = 1e-9
_APART = 1e-4  # of its value, by which a row differs from its like
_SPARING = 1e-7  # of the highest value, for which a whole budget is worth sparing
_CLOSED = 1e-8  # of the bound: a mixture this near it is the best
_CARRIED = 5  # budgets that are watched while combinations grow; all are checked in the end
_PATIENCE = 3  # rounds in a row that find nothing, after which more of them hardly would
_PAIRED = 256  # options that are tried two by two
_TRIED = 8  # the best so many combinations are checked against all budgets
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
        scale = float(np.abs(value[np.isfinite(value)]).max())
        # Many rows are alike, and would all change their option at the same price. A little difference between them
        # lets a price split them; and of options of equal value the sparing one is better. Bounds go without it.
        apart = 1 + _APART * self._columns / value.shape[1]
        self._told_apart = value * apart - _SPARING * scale * uses.sum(axis=0)

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

    def relax(self, start: Ints, steps: int) -> list[Ints]:
        """Lower the bound to what a mixture of choices reaches; returns the choices of that mixture.

        Args:
            start: a choice that keeps all priced budgets.
            steps: how many prices to try at most.
        """
        flat = self._told_apart.ravel()
        mixture = _Mixture(self.budgets, start, float(flat.take(self._at(start)).sum()), self.used(start))
        lowest = np.inf
        for _ in range(steps):
            prices, reached = mixture.prices()
            choice = (self._told_apart - _paid(prices, self.uses)).argmax(axis=0)
            worth, used = float(flat.take(self._at(choice)).sum()), self.used(choice)
            bound = float(worth - prices @ (used - self.budgets))
            if bound < lowest:
                lowest, self.prices = bound, prices
            if lowest - reached <= _CLOSED * abs(lowest):
                break
            if not mixture.enter(choice, worth, used):
                break
        # Rows told apart may have had a slightly better option, which a bound must know.
        best = (self.value - _paid(self.prices, self.uses)).max(axis=0).sum()
        self.bound = float(best + self.prices @ self.budgets)
        return mixture.choices

    def rounded(self, mixture: Sequence[Ints]) -> Ints | None:
        """A choice that keeps all budgets, near a mixture; None if none is found."""
        fitting = [choice for choice in mixture if self.fits(choice)]
        options = np.array(mixture)
        paid = _paid(self.prices, self.uses)[options, self._columns]
        frugal = options[paid.argmin(axis=0), self._columns]
        if self.fits(frugal):
            fitting.append(frugal)
        for factor in _RAISES if not fitting else ():
            choice = (self._told_apart - _paid(self.prices * factor, self.uses)).argmax(axis=0)
            if self.fits(choice):
                return choice
        return max(fitting, key=self.worth, default=None)

    def improve(
        self, best: Ints, mixture: Sequence[Ints], near_enough: float, rounds: Sequence[tuple[int, int]]
    ) -> Ints:
        """A choice at least as good as `best`, which keeps all budgets.

        Args:
            mixture: choices around which to search, too; they need not keep the budgets.
            near_enough: stop when the value is at most this far from the bound.
            rounds: for each, how many options may change, and how many partial choices are kept while they do.
        """
        reduced = self.value - _paid(self.prices, self.uses)
        loss = reduced.max(axis=0) - reduced
        worth = self.worth(best)
        random = None
        idle = 0
        for round_, (options, width) in enumerate(rounds):
            gap = self.bound - worth
            if gap <= near_enough:
                break
            centre = mixture[round_ // 2 % len(mixture)] if round_ % 2 == 0 else best
            further = self._further(loss, centre, gap)
            if round_ > 1:
                # The same few again would find nothing new: others, of little loss still, by lot.
                random = random or np.random.default_rng(round_)
                further = (further + gap / 4) * random.random(further.shape)
            bundles = self._bundled(further, centre, options)
            found = self._best_of(centre, bundles, worth, width)
            if found is not None:
                best, worth, idle = found, self.worth(found), 0
            else:
                idle += 1
                if idle == _PATIENCE:
                    break
        for centre in (*mixture, best):
            if self.bound - worth > near_enough:
                further = self._further(loss, centre, self.bound - worth)
                found = self._best_pair(centre, _least(further, _PAIRED), worth)
                if found is not None:
                    best, worth = found, self.worth(found)
        return best

    def _further(self, loss: Floats, centre: Ints, gap: float) -> Floats:
        """How much more every option loses than that of `centre`; inf for the latter and where too much is lost."""
        further = np.where(loss < gap, loss - loss[centre, self._columns], np.inf)
        further[centre, self._columns] = np.inf
        return further

    def _bundled(self, further: Floats, centre: Ints, count: int) -> list[tuple[Ints, list[int]]]:
        """The `count` options that lose least, for bundles of rows that are alike and have the same option now."""
        state = self._kinds() * len(self.value) + centre
        candidates = _least(further, further.size)
        option, row = np.divmod(candidates, len(self._columns))
        # Of rows that are alike, the first stands for all.
        first = np.sort(np.unique(state[row] * len(self.value) + option, return_index=True)[1])[:count]
        core: dict[int, list[int]] = {}
        for of_state, other in zip(state[row[first]].tolist(), option[first].tolist(), strict=True):
            core.setdefault(of_state, []).append(other)
        return [(rows, core[of_state]) for of_state in core for rows in _bundles(np.flatnonzero(state == of_state))]

    def _kinds(self) -> Ints:
        """A number for each row, the same for rows that are alike in values and uses."""
        layers = np.vstack((np.where(np.isfinite(self.value), self.value, -1.0), *self.uses))
        _, kinds = np.unique(np.round(np.sin(1.0 + np.arange(len(layers))) @ layers, 9), return_inverse=True)
        return kinds

    def _best_pair(self, centre: Ints, candidates: Ints, worth: float) -> Ints | None:
        """The best choice that differs from `centre` in two rows, by `candidates`; None if not worth over `worth`."""
        row = candidates % len(self._columns)
        own = self._at(centre)[row]
        gain = self._flat_value[candidates] - self._flat_value[own]
        good = np.add.outer(gain, gain) > worth - self.worth(centre) + _ROUNDING * (1 + abs(worth))
        good &= row[:, None] < row
        slack = self.budgets - self.used(centre)
        more = self._flat_uses[:, candidates] - self._flat_uses[:, own]
        tight = self._tight(2 * more.max(axis=1, initial=0.0) - slack)
        first, second = np.nonzero(good)
        more = more[tight]
        fitting = np.flatnonzero((more[:, first] + more[:, second] <= slack[tight, None]).all(axis=0))
        together = gain[first[fitting]] + gain[second[fitting]]
        for pair in fitting[np.argsort(-together, kind="stable")[:_TRIED]].tolist():
            choice = centre.copy()
            for candidate in candidates[[first[pair], second[pair]]].tolist():
                option, changed = divmod(candidate, len(self._columns))
                choice[changed] = option
            if self.fits(choice) and self.worth(choice) > worth:
                return choice
        return None

    def _tight(self, over: Floats) -> Ints:
        """Those budgets that may be overrun by `over`, a few at most and first those with a price: what is watched."""
        over = np.where(self.prices > 0, over + 1e3, over)
        most: Ints = np.argsort(-over, kind="stable")[:_CARRIED]
        return most[over[most] > 0]

    def _at(self, choice: Ints) -> Ints:
        at: Ints = choice * len(self._columns) + self._columns
        return at

    def _best_of(self, centre: Ints, core: list[tuple[Ints, list[int]]], worth: float, width: int) -> Ints | None:
        """The best choice found that differs from `centre` by options of `core` only; None if not worth over `worth`.

        Row by row, all partial choices are extended by all options of the row. Those are dropped that can't come to
        more than `worth` at the prices, or can't keep the budgets any more; and all but the `width` most promising.
        """
        slack = self.budgets - self.used(centre)
        steps = []
        for rows, options in core:
            row, own = rows[0], centre[rows[0]]
            step = np.zeros((2 + len(slack), 1 + len(options)))
            step[1, 1:] = self.value[options, row] - self.value[own, row]
            step[2:, 1:] = self.uses[:, options, row] - self.uses[:, own, row][:, None]
            step[0] = step[1] - self.prices @ step[2:]
            steps.append((rows, options, step * len(rows)))
        if not steps:
            return None
        # Long steps first: short ones then fill what is left.
        steps.sort(key=lambda item: -float(np.abs(item[2][1] - item[2][0]).max()))
        # Budgets that the whole core can't overrun need not be added up.
        tight = self._tight(sum((step[2:].max(axis=1) for _, _, step in steps), -slack))
        carried = np.concatenate(([0, 1], 2 + tight))
        limit = slack[tight, None]
        ahead = np.array([[step[0].max(), *step[2 + tight].min(axis=1)] for _, _, step in steps])
        ahead = np.cumsum(ahead[::-1], axis=0)[::-1] - ahead
        enough = worth - self.worth(centre) + _ROUNDING * (1 + abs(worth))
        least = enough - float(self.prices @ slack)
        totals = np.zeros((len(carried), 1))
        history: list[tuple[Ints, int]] = []
        for (_, options, step), later in zip(steps, ahead, strict=True):
            totals = (totals[:, :, None] + step[carried, None, :]).reshape(len(carried), -1)
            keep = totals[0] >= least - later[0]
            keep &= (totals[2:] + later[1:, None] <= limit).all(axis=0)
            kept = np.flatnonzero(keep)
            if len(kept) > width:
                # Alike rows make alike totals by the dozen: one of each is enough.
                kept = kept[np.unique(np.round(totals[0, kept] + 7.3 * totals[1, kept], 7), return_index=True)[1]]
            if len(kept) > width:
                kept = kept[np.argpartition(-totals[0, kept], width)[:width]]
            totals = totals[:, kept]
            history.append((kept, 1 + len(options)))
        better = np.flatnonzero(totals[1] > enough)
        for index in better[np.argsort(-totals[1, better], kind="stable")[:_TRIED]].tolist():
            choice = centre.copy()
            for (rows, options, _), (kept, count) in zip(reversed(steps), reversed(history), strict=True):
                index, position = divmod(int(kept[index]), count)
                if position:
                    choice[rows] = options[position - 1]
            if self.fits(choice) and self.worth(choice) > worth:
                return choice
        return None


def _least(further: Floats, count: int) -> Ints:
    """Flat indices of the `count` least finite values, ascending."""
    candidates = np.flatnonzero(further < np.inf)
    ascending: Ints = candidates[np.argsort(further.ravel()[candidates], kind="stable")[:count]]
    return ascending


def _bundles(rows: Ints) -> list[Ints]:
    """Rows that are alike, some of them at most, as bundles of 1, 2, 4, ...: any number is a sum of these."""
    bounds = [0, 1, 3, 7, 15]
    return [rows[start:end] for start, end in pairwise(bounds) if start < len(rows)]


class _Mixture:
    """The best mixture of the choices seen so far that keeps the budgets on average: a revised simplex method.

    Its rows are the budgets and that the parts add up to 1; its basis starts as all slack and the first choice.
    """

    def __init__(self, budgets: Floats, choice: Ints, value: float, used: Floats) -> None:
        m = len(budgets)
        self._inverse = np.eye(m + 1)
        self._inverse[:m, m] = -used
        self._level = np.append(budgets - used, 1.0)
        self._value = np.zeros(m + 1)
        self._value[m] = value
        self._choice: list[Ints | None] = [*[None] * m, choice]

    @property
    def choices(self) -> list[Ints]:
        """The choices that are mixed."""
        return [choice for choice in self._choice if choice is not None]

    def prices(self) -> tuple[Floats, float]:
        """What a unit of each budget is worth to the mixture, and its value."""
        while True:
            dual = self._value @ self._inverse
            cheapest = int(dual[:-1].argmin())
            if dual[cheapest] >= -_ROUNDING * (1 + abs(dual[-1])) or not self._pivot(
                self._inverse[:, cheapest], None, 0.0
            ):
                return np.maximum(dual[:-1], 0.0), float(self._value @ self._level)

    def enter(self, choice: Ints, value: float, used: Floats) -> bool:
        """Mix a choice in; False if rounding forbids it."""
        return self._pivot(self._inverse @ np.append(used, 1.0), choice, value)

    def _pivot(self, column: Floats, choice: Ints | None, value: float) -> bool:
        rising = np.flatnonzero(column > _ROUNDING)
        if not len(rising):
            return False
        leaving = int(rising[(self._level[rising] / column[rising]).argmin()])
        pivot = column[leaving]
        column = column.copy()
        column[leaving] = 0.0
        self._inverse[leaving] /= pivot
        self._inverse -= np.outer(column, self._inverse[leaving])
        self._level[leaving] /= pivot
        self._level -= column * self._level[leaving]
        self._value[leaving] = value
        self._choice[leaving] = choice
        return True


def _paid(prices: Floats, uses: Floats) -> Floats:
    """What every option costs at these prices."""
    return (prices @ uses.reshape(len(prices), -1)).reshape(uses.shape[1:])
