"""Multiple choice under budgets, fast: an option for every row, the highest value, no budget overrun; and a bound.

Budgets get prices. At any prices, the sum of every row's best reduced value bounds the value of all choices; the lowest
such bound is what a mixture of choices could reach, and `relax` finds both together (Dantzig and Wolfe 1960). In a
mixture, few rows are torn between options: dealt out by their shares, they make a choice that is near the bound and
nearly keeps the budgets. An option's loss is what it falls short of its row's best at the prices, and what a choice
falls short of the bound is its losses and what it leaves of priced budgets. So `improve` combines options of little
loss until the gap is closed: two rows at once, then four, then, row by row, all that could be better (Pisinger, "A
minimal algorithm for the multiple-choice knapsack problem", 1995, with one budget). Every step has a limit.

Further budgets, of which there may be as many as rows, are ignored until a choice overruns them.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from allocator.solver.arrays import Floats, Ints

_ROUNDING = 1e-9
_SAME = 2e-5  # of the highest value: losses nearer than this are those of rows that are alike
_WATCHED = 10  # budgets that prices are looked for; up to twice as many are watched
_REPAIRS = 30  # options changed until a rounded mixture keeps the budgets
_EXCHANGES = 30  # times that rows are exchanged while it helps,
_WORK = 10_000  # and rows that this may come to
_PAIRED = 64  # options that are tried two by two
_FOURS = 150  # pairs of options that are tried two by two
_TRIED = 8  # the best so many combinations are checked against all budgets
_CARRIED = 5  # budgets that are watched while combinations grow


class Choice:
    """One option for every row, under budgets.

    Args:
        value: (options, rows), -inf where a row has no such option; every row has one.
        uses: (budgets, options, rows); may be negative.
        budgets: (budgets,) how much of each may be used.
        overrun: a further budget that a choice overruns, as what every option uses of it and how much may be used;
            None if it keeps them all. There may be many of these; the few that matter are then watched as well.
    """

    def __init__(
        self,
        value: Floats,
        uses: Floats,
        budgets: Floats,
        overrun: Callable[[Ints], tuple[Floats, float] | None],
    ) -> None:
        self.value = value
        self.uses = uses
        self.budgets = budgets
        self.prices = np.zeros(len(budgets))
        self.bound = np.inf
        self._loss = np.zeros_like(value)
        self._dealt_choice: Ints = np.zeros(value.shape[1], dtype=np.intp)
        self._overrun = overrun
        self._columns = np.arange(value.shape[1])
        self._alike = _SAME * float(value.max())
        self._flat_value = value.ravel()
        self._flat = np.concatenate((self._flat_value[None], uses.reshape(len(budgets), -1)))

    def totals(self, choice: Ints) -> Floats:
        """The value of a choice, then how much it uses of each budget."""
        totals: Floats = self._flat.take(self._at(choice), axis=1).sum(axis=1)
        return totals

    def worth(self, choice: Ints) -> float:
        """The value of a choice."""
        return float(self._flat_value.take(self._at(choice)).sum())

    def used(self, choice: Ints) -> Floats:
        """How much a choice uses of each budget."""
        return self.totals(choice)[1:]

    def fits(self, choice: Ints) -> bool:
        """Whether a choice keeps all budgets."""
        return bool((self.used(choice) <= self.budgets).all()) and not self._watches(choice)

    def _watches(self, choice: Ints) -> bool:
        """Whether a choice overruns a further budget; it is watched from now on."""
        over = self._overrun(choice)
        if over is None:
            return False
        uses, budget = over
        self.uses = np.concatenate((self.uses, uses[None]))
        self.budgets = np.append(self.budgets, budget)
        self.prices = np.append(self.prices, 0.0)
        self._flat = np.concatenate((self._flat, uses.reshape(1, -1)))
        return True

    def relax(self, start: Ints, steps: int, closed: float) -> Ints:
        """Lower the bound to what a mixture of choices reaches; returns a choice near that mixture.

        Args:
            start: a choice that keeps all budgets.
            steps: how many prices to try at most.
            closed: the share of the bound that a mixture may fall short of it.
        """
        parts: list[tuple[float, Ints]] = []
        while True:
            self.bound = np.inf
            parts = self._mixed(start, parts, steps, closed)
            self._dealt_choice = self._dealt(parts)
            near = self._repaired(self._dealt_choice)
            if len(self.budgets) >= _WATCHED or (self.used(near) > self.budgets).any() or not self._watches(near):
                return near

    def _mixed(
        self, start: Ints, parts: list[tuple[float, Ints]], steps: int, closed: float
    ) -> list[tuple[float, Ints]]:
        """The best mixture of choices, with their shares; sets the bound, its prices, and the losses at these.

        `parts` are of an earlier mixture, with fewer budgets: a good beginning.
        """
        budgets = self.budgets.tolist()
        mixture = _Mixture(budgets, start, self.totals(start).tolist())
        for _, part in parts:
            mixture.enter(part, self.totals(part).tolist())
        for _ in range(steps):
            prices, reached = mixture.prices()
            if reached >= self.bound - closed * abs(self.bound):
                break
            tried = np.array(prices)
            reduced = (self._flat_value - tried @ self._flat[1:]).reshape(self.value.shape)
            choice = reduced.argmax(axis=0)
            totals = self.totals(choice).tolist()
            bound = totals[0] + sum(p * (b - u) for p, b, u in zip(prices, budgets, totals[1:], strict=True))
            if bound < self.bound:
                self.bound, self.prices, self._loss = bound, tried, reduced
            if not mixture.enter(choice, totals):
                break
        self._loss = self._loss.max(axis=0) - self._loss
        return mixture.parts

    def _dealt(self, parts: Sequence[tuple[float, Ints]]) -> Ints:
        """The rows in which the choices of a mixture differ take turns by their shares; alike rows are neighbours."""
        parts = sorted(parts, key=lambda part: -part[0])
        left, choice = 1.0, parts[0][1].copy()
        options = np.array([part for _, part in parts])
        rows = np.flatnonzero((options != choice).any(axis=0))
        rows = rows[np.lexsort((self.uses[0][choice[rows], rows], *options[:, rows]))]
        for share, part in parts[:0:-1]:
            turns = np.floor(np.arange(len(rows) + 1) * (share / left) + 0.5)
            turn = turns[1:] > turns[:-1]
            choice[rows[turn]] = part[rows[turn]]
            rows, left = rows[~turn], left - share
        return choice

    def _repaired(self, choice: Ints) -> Ints:
        """Change one option after the other, where it costs least, until the priced budgets hold (or nothing helps)."""
        choice = choice.copy()
        flat_loss = self._loss.ravel()
        budgets = self.budgets[:, None]
        for _ in range(_REPAIRS):
            at = self._at(choice)
            used = self._flat.take(at, axis=1).sum(axis=1)[1:, None]
            now = float(np.maximum(used - budgets, 0.0).sum())
            if now <= 0:
                break
            rest = used[:, :, None] - self.uses[:, choice, self._columns][:, None, :] - budgets[:, :, None]
            saved = now - np.maximum(rest + self.uses, 0.0).sum(axis=0)
            saved[self.value == -np.inf] = 0.0
            further = self._loss - flat_loss.take(at) + _ROUNDING
            with np.errstate(divide="ignore", invalid="ignore"):
                rate = np.where(saved > _ROUNDING * now, np.maximum(further, _ROUNDING) / saved, np.inf)
            best = int(rate.argmin())
            option, row = divmod(best, len(self._columns))
            if rate[option, row] == np.inf:
                break
            choice[row] = option
        return choice

    def improve(
        self, best: Ints, near: Ints, near_enough: float, clear: float, rounds: Sequence[tuple[int, int]]
    ) -> Ints:
        """A choice at least as good as `best`, which keeps all budgets.

        Args:
            near: what `relax` returned; it need not keep the budgets.
            near_enough: stop when the value is at most this far from the bound.
            clear: the same, after a round that found nothing better.
            rounds: for each, how many options may change, and how many partial choices are kept while they do.
        """
        worth, dealt = self.worth(best), self._dealt_choice
        if self.worth(near) > worth and self.fits(near):
            best, worth = near, self.worth(near)
        limit = min(_EXCHANGES, max(2, _WORK // len(self._columns)))
        for exchange in range(limit):
            if self.bound - worth <= near_enough:
                return best
            found = self._exchanged(best if exchange else dealt, worth)
            if found is not None:
                best, worth = found, self.worth(found)
            elif exchange:
                break
        for wide_from_best in (False, True):
            if self.bound - worth <= near_enough:
                return best
            found = self._exchanged(best if wide_from_best else dealt, worth, wide=True)
            if found is not None:
                best, worth = found, self.worth(found)
        for round_, (options, width) in enumerate(rounds):
            gap = self.bound - worth
            if gap <= near_enough:
                break
            centre = best if round_ % 2 else dealt
            bundles, whole = self._bundled(self._further(centre, gap), centre, options)
            found, exact = self._best_of(centre, bundles, worth, width)
            if found is not None:
                best, worth = found, self.worth(found)
            elif (exact and whole) or gap <= clear:
                break
        return best

    def _further(self, centre: Ints, gap: float) -> Floats:
        """How much more every option loses than that of `centre`; inf for the latter and where too much is lost."""
        further = np.where(self._loss < gap, self._loss - self._loss[centre, self._columns], np.inf)
        further[centre, self._columns] = np.inf
        return further

    def _bundled(self, further: Floats, centre: Ints, count: int) -> tuple[list[tuple[Ints, list[int]]], bool]:
        """The `count` options that lose least, for bundles of rows that are alike and have the same option now.

        And whether these are all options that there are, of rows that have no like.
        """
        state = self._kinds() * len(self.value) + centre
        candidates = np.flatnonzero(further < np.inf)
        candidates = candidates[np.argsort(further.ravel()[candidates], kind="stable")]
        option, row = np.divmod(candidates, len(self._columns))
        # Of rows that are alike, the first stands for all.
        first = np.sort(np.unique(state[row] * len(self.value) + option, return_index=True)[1])
        whole = len(first) == len(candidates) <= count
        core: dict[int, list[int]] = {}
        for of_state, other in zip(state[row[first[:count]]].tolist(), option[first[:count]].tolist(), strict=True):
            core.setdefault(of_state, []).append(other)
        bundles = [(rows, core[key]) for key in core for rows in _bundles(np.flatnonzero(state == key))]
        return bundles, whole

    def _kinds(self) -> Ints:
        """A number for each row, the same for rows that are alike in values and uses."""
        coarse = np.rint(np.where(np.isfinite(self.value), self.value, -1.0) / (4 * self._alike))
        layers = np.vstack((coarse, *self.uses))
        _, kinds = np.unique(np.round(np.sin(1.0 + np.arange(len(layers))) @ layers, 9), return_inverse=True)
        return kinds

    def _exchanged(self, centre: Ints, worth: float, wide: bool = False) -> Ints | None:
        """The best choice found that differs from `centre` in up to two rows, in up to four if `wide`.

        None if none is worth over `worth`. Only options of the least loss are tried, few of those that are alike.
        """
        count, alike = (_PAIRED, 2) if not wide else (2 * _PAIRED, 4)
        further = self._further(centre, self.bound - worth).ravel()
        most = min(4 * count, len(further))
        candidates = np.argpartition(further, most - 1)[:most]
        candidates = candidates[np.argsort(further[candidates], kind="stable")]
        loss = np.minimum(further[candidates], 1e300)
        different = np.ones(len(loss), dtype=bool)
        different[alike:] = loss[alike:] - loss[:-alike] > self._alike
        candidates = candidates[different & (loss < 1e300)][:count]
        row = candidates % len(self._columns)
        # Changes: of the value, and of what is used; the last is none at all.
        change = np.zeros((len(self._flat), len(candidates) + 1))
        change[:, :-1] = self._flat[:, candidates] - self._flat[:, self._at(centre)[row]]
        totals = self.totals(centre)
        slack = self.budgets - totals[1:]
        if wide:
            further = np.append(further[candidates], 0.0)
            halves = [self._pairs(np.append(row, -1), further, half) for half in (0, 1)]
            first, second = (change[:, one] + change[:, other] for one, other in halves)
        else:
            index = np.arange(len(candidates) + 1)
            halves = [(index, np.full(len(index), len(candidates)))] * 2
            first = second = change
        together = np.add.outer(first[0], second[0])
        good = together > worth - totals[0] + _ROUNDING * (1 + abs(worth))
        if not wide:
            row = np.append(row, -1)
            good &= row[:, None] > row
        for more, others, left in zip(first[1:], second[1:], slack.tolist(), strict=True):
            good &= np.add.outer(more, others) <= left
        flat = np.flatnonzero(good)
        gain = together.ravel()[flat]
        for _ in range(min(_TRIED, len(flat))):
            best = int(gain.argmax())
            choice = centre.copy()
            for at, (one, other) in zip(divmod(int(flat[best]), good.shape[1]), halves, strict=True):
                for index in (one[at], other[at]):
                    if index < len(candidates):
                        option, changed = divmod(int(candidates[index]), len(self._columns))
                        choice[changed] = option
            known = len(self.budgets)
            if self.fits(choice) and self.worth(choice) > worth:
                return choice
            if len(self.budgets) > known:
                return self._exchanged(centre, worth, wide) if known < 2 * _WATCHED else None
            gain[best] = -np.inf
        return None

    def _pairs(self, row: Ints, further: Floats, half: int) -> tuple[Ints, Ints]:
        """Pairs of changes, of every other row, that lose least: indices of both; the last change is none."""
        mine = np.append(np.flatnonzero(row[:-1] % 2 == half), len(row) - 1)
        one, other = (mine[index] for index in np.triu_indices(len(mine)))
        loss = further[one] + further[other]
        loss[(row[one] == row[other]) & (row[one] >= 0)] = np.inf
        kept = np.flatnonzero(loss < np.inf)
        if len(kept) > _FOURS:
            kept = kept[np.argpartition(loss[kept], _FOURS)[:_FOURS]]
        return one[kept], other[kept]

    def _tight(self, over: Floats) -> Ints:
        """Those budgets that may be overrun by `over`, a few at most and first those with a price: what is watched."""
        over = np.where(self.prices > 0, over + 1e3, over)
        most: Ints = np.argsort(-over, kind="stable")[:_CARRIED]
        return most[over[most] > 0]

    def _at(self, choice: Ints) -> Ints:
        at: Ints = choice * len(self._columns) + self._columns
        return at

    def _best_of(
        self, centre: Ints, core: list[tuple[Ints, list[int]]], worth: float, width: int
    ) -> tuple[Ints | None, bool]:
        """The best choice found that differs from `centre` by options of `core` only; None if not worth over `worth`.

        Row by row, all partial choices are extended by all options of the row. Those are dropped that can't come to
        more than `worth` at the prices, or can't keep the budgets any more; and all but the `width` most promising. The
        answer comes with whether that left out nothing.
        """
        exact = True
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
            return None, True
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
            if len(kept) > width and len(tight) == 1:
                # What is worth no more than another and uses no less is of no use.
                kept = kept[np.lexsort((-totals[1, kept], totals[2, kept]))]
                value = totals[1, kept]
                kept = kept[np.append(True, value[1:] > np.maximum.accumulate(value)[:-1] + _ROUNDING)]
            elif len(kept) > width:
                # Alike rows make alike totals by the dozen: one of each is enough.
                kept = kept[np.unique(np.round(totals[0, kept] + 7.3 * totals[1, kept], 7), return_index=True)[1]]
            if len(kept) > width:
                exact = False
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
                return choice, exact
        return None, exact and not len(better)


def _bundles(rows: Ints) -> list[Ints]:
    """Rows that are alike, some of them at most, as bundles of 1, 2, 4, ...: any number is a sum of these."""
    bounds = [0, 1, 3, 7, 15]
    return [rows[start:end] for start, end in pairwise(bounds) if start < len(rows)]


class _Mixture:
    """The best mixture of the choices seen so far that keeps the budgets on average: a revised simplex method.

    Its rows are the budgets and that the parts add up to 1; its basis starts as all slack and the first choice.
    Budgets are few: plain Python is faster than arrays.
    """

    def __init__(self, budgets: list[float], choice: Ints, totals: list[float]) -> None:
        value, *used = totals
        m = len(budgets)
        self._inverse = [[float(i == j) for j in range(m)] + [-used[i]] for i in range(m)] + [[0.0] * m + [1.0]]
        self._level = [b - u for b, u in zip(budgets, used, strict=True)] + [1.0]
        self._value = [0.0] * m + [value]
        self._choice: list[Ints | None] = [*[None] * m, choice]

    @property
    def parts(self) -> list[tuple[float, Ints]]:
        """The choices that are mixed, each with its share."""
        parts = zip(self._level, self._choice, strict=True)
        return [(level, choice) for level, choice in parts if choice is not None and level > _ROUNDING]

    def prices(self) -> tuple[list[float], float]:
        """What a unit of each budget is worth to the mixture, and its value."""
        while True:
            basis = [(value, row) for value, row in zip(self._value, self._inverse, strict=True) if value]
            dual = [sum(value * row[j] for value, row in basis) for j in range(len(self._level))]
            least = min(dual[:-1])
            j = dual.index(least)
            if least >= -_ROUNDING * (1 + abs(dual[-1])) or not self._pivot([r[j] for r in self._inverse], None, 0.0):
                value = sum(map(float.__mul__, self._value, self._level))
                return [max(price, 0.0) for price in dual[:-1]], value

    def enter(self, choice: Ints, totals: list[float]) -> bool:
        """Mix a choice in; False if rounding forbids it."""
        column = [*totals[1:], 1.0]
        return self._pivot([sum(map(float.__mul__, row, column)) for row in self._inverse], choice, totals[0])

    def _pivot(self, column: list[float], choice: Ints | None, value: float) -> bool:
        ratios = [(level / c, i) for i, (level, c) in enumerate(zip(self._level, column, strict=True)) if c > _ROUNDING]
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
