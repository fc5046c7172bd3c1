"""The default: `optimal` to within a small gap, in the time that a live decision has."""

import numpy as np

from allocator.choice import Choice
from allocator.few import few_choice
from allocator.grants import hand_out
from allocator.problem import Problem, Solution
from allocator.rows import UNMET, Floats, Ints, Rows, choices_of, rows_of

_NEAR = 9e-4  # of the quality: a choice this near its bound is good enough
_MOST_PRICED = 8192  # deadlines times rows; the cloud time until other deadlines has no price and is just checked
_STEPS = 40  # prices tried
_WIDER = 64  # with fewer rows than this, more partial choices are kept
# Options that may change in each round of the search, and partial choices that are kept; see `Choice.improve`.
_ROUNDS = ((20, 32), (20, 32), (40, 128), (40, 128), (64, 512), (64, 512), (64, 1024))


class Deadline:
    """As much weight in time as possible, then the best weighted quality, by prices and a short exact search.

    See `allocator.choice` for the method and `scout bench allocator` for how near it comes, and how fast.
    """

    name = "deadline"
    standing = False
    by_need = True

    def solve(self, problem: Problem) -> Solution:
        few = few_choice(problem)
        return hand_out(problem, *(few or choices_of(problem, near_choice(rows_of(problem)).tolist())))


def near_choice(rows: Rows) -> Ints:
    """The option of every row, UNMET if none."""
    choice = np.full(len(rows.weight), UNMET, dtype=np.intp)
    can = np.flatnonzero(np.isfinite(rows.need_mbps).any(axis=0))
    if len(can):
        choice[can] = _Solver(rows, can).solve()
    return choice


class _Solver:
    """Those rows that can be met at all; the layer after the last option stands for `unmet`."""

    def __init__(self, rows: Rows, can: Ints) -> None:
        self.unmet = len(rows.need_mbps)
        nothing = np.zeros((1, len(can)))
        need = rows.need_mbps[:, can] / rows.uplink_mbps
        self.offered = np.vstack((np.isfinite(need), np.ones_like(nothing, dtype=bool)))
        self.need = np.where(self.offered, np.vstack((need, nothing)), 0.0)
        self.cloud_ms = np.vstack((rows.cloud_ms[:, can], nothing))
        self.quality = np.vstack((rows.quality[:, can], nothing))
        self.weight = rows.weight[can]
        self.met = np.vstack((np.broadcast_to(self.weight, need.shape), nothing))
        self.stage = rows.stage[can]
        self.budget_ms = rows.budget_ms

    def solve(self) -> Ints:
        """Indices of options for the rows that can be met, UNMET for those that are not."""
        best = self._everybody()
        if best is None:
            best = self._most_weight()
        best = self._best_quality(best)
        return np.where(best == self.unmet, UNMET, best)

    def _everybody(self) -> Ints | None:
        """All met, by what needs least of the uplink; None if that fails."""
        best: Ints = np.where(self.offered[:-1], self.need[:-1], np.inf).argmin(axis=0)
        columns = np.arange(len(best))
        return best if self.need[best, columns].sum() <= 1 and self._cloud_holds(best) else None

    def _most_weight(self) -> Ints:
        value = np.where(self.offered, self.met, -np.inf)
        whole = (self.weight == np.floor(self.weight)).all()
        nobody = np.full(len(self.weight), self.unmet)
        return self._best(
            self._priced(value, np.empty((0, *value.shape)), np.empty(0)), nobody, 1 - 1e-6 if whole else 0.0
        )

    def _best_quality(self, start: Ints) -> Ints:
        value = np.where(self.offered, self.quality, -np.inf)
        if (start != self.unmet).all():
            value[self.unmet] = -np.inf
            choice = self._priced(value, np.empty((0, *value.shape)), np.empty(0))
        else:
            # The weight that is met is two more budgets: it can't be more, and what is used of the other is negative.
            weight = self.met[start, np.arange(len(start))].sum()
            uses = np.stack((self.met, -self.met))
            choice = self._priced(value, uses, np.array([weight * (1 + 1e-9), -weight * (1 - 1e-9)]))
        return self._best(choice, start, _NEAR * choice.worth(start))

    def _best(self, choice: Choice, start: Ints, near_enough: float) -> Ints:
        """The best choice found, from one that keeps all budgets."""
        mixture = choice.relax(start, _STEPS)
        rounded = choice.rounded(mixture)
        if rounded is not None and choice.worth(rounded) > choice.worth(start):
            start = rounded
        # With few rows there is more to lose by one of them, and time for more.
        wider = max(1, _WIDER // len(self.weight))
        return choice.improve(start, mixture, near_enough, [(options, width * wider) for options, width in _ROUNDS])

    def _priced(self, value: Floats, uses: Floats, budgets: Floats) -> Choice:
        """With prices on the uplink and on the cloud time until some deadlines, all of them if there are few."""
        deadlines = len(self.budget_ms)
        priced = min(deadlines, max(4, _MOST_PRICED // len(self.weight)))
        stages = [deadlines - 1 - deadlines * i // priced for i in range(priced)]
        shares = [self.cloud_ms / max(self.budget_ms[stage], 1e-9) for stage in stages]
        cloud = [np.where(self.stage <= stage, share, 0.0) for stage, share in zip(stages, shares, strict=True)]
        return Choice(
            value,
            np.concatenate((self.need[None], np.array(cloud).reshape(-1, *self.need.shape), uses)),
            np.concatenate((np.ones(1 + len(cloud)), budgets)),
            self._cloud_holds,
        )

    def _cloud_holds(self, choice: Ints) -> bool:
        if not len(self.budget_ms):
            return True
        cloud_ms = np.bincount(self.stage, self.cloud_ms[choice, np.arange(len(choice))], len(self.budget_ms))
        return bool((np.cumsum(cloud_ms)[: len(self.budget_ms)] <= self.budget_ms).all())
