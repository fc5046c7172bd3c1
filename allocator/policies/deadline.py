"""The default: `optimal` to within a small gap, in the time that a live decision has."""

import numpy as np

from allocator.problem import Problem, Solution
from allocator.solver.arrays import UNMET, Floats, Ints, Rows, choices_of, rows_of
from allocator.solver.enumerate import few_choice
from allocator.solver.grants import hand_out
from allocator.solver.mckp import Choice

_NEAR = 8.7e-4  # of the quality: a choice this near its bound is good enough
_CLEAR = 2.6e-3  # after a search that found nothing better: few that are longer do
_SPARING = 0.2  # of the least weight, for which the whole uplink and all cloud time are worth sparing
_TIE = 1e-5  # of the quality, the same for a row: of rows that are alike, those with later deadlines go first
_STEPS = 40  # prices tried
_CLOSED = 1e-5  # of the bound: a mixture this near it is the best
_MANY = 256  # rows, from which on a mixture need not be as near its bound,
_MOST_SEARCHED = 2048  # and above which exchanges of a few rows must do
# Options that may change in each round of the search, and partial choices that are kept; see `Choice.improve`.
_ROUNDS = ((24, 64), (32, 256), (48, 256))
_FEW = 48  # rows, up to which there are more rounds for one more that meets its deadline
_MORE_ROUNDS = ((48, 512), (64, 1024))


class Deadline:
    """As much weight in time as possible, then the best weighted quality, by prices and a short exact search.

    See `allocator.solver.mckp` for the method and `scout bench allocator` for how near it comes, and how fast.
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
        self.columns = np.arange(len(can))

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
        return best if self.need[best, self.columns].sum() <= 1 and self._overrun(best) is None else None

    def _most_weight(self) -> Ints:
        unit = float(self.weight.min())
        whole = np.abs(self.weight / unit - np.rint(self.weight / unit)).max() < 1e-9
        # Of choices that meet the same weight, those are better that leave more: that leads to others.
        spared = (_SPARING if whole else 1e-6) * unit
        most_ms = max(self.budget_ms[-1], 1e-9) if len(self.budget_ms) else np.inf
        value = self.met - spared / 2 * (self.need + self.cloud_ms / most_ms)
        value[~self.offered] = -np.inf
        nobody = np.full(len(self.weight), self.unmet)
        choice = Choice(value, self.need[None], np.ones(1), self._overrun)
        near = choice.relax(nobody, _STEPS, _CLOSED)
        near_enough = (1 - _SPARING - 1e-6) * unit if whole else 0.0
        if len(nobody) <= _FEW:
            return choice.improve(nobody, near, near_enough, near_enough, _ROUNDS + _MORE_ROUNDS)
        return choice.improve(nobody, near, near_enough, 2 * near_enough, self._rounds())

    def _best_quality(self, start: Ints) -> Ints:
        tie = _TIE * float(self.quality.max())
        early = 1 - self.stage / max(len(self.budget_ms), 1)
        taken = self.need / max(self.need.max(), 1e-9) + self.cloud_ms / max(self.cloud_ms.max(), 1e-9) * early
        value = np.where(self.offered, self.quality - tie * taken, -np.inf)
        worth = float(value[start, self.columns].sum())
        uses, budgets = self.need[None], np.ones(1)
        if (start != self.unmet).all():
            value[self.unmet] = -np.inf
        else:
            # The weight that is met is another budget, of which every request uses less than nothing.
            weight = self.met[start, self.columns].sum()
            uses = np.stack((self.need, -self.met / max(weight, 1e-9)))
            budgets = np.array([1.0, -1 + 1e-9])
        choice = Choice(value, uses, budgets, self._overrun)
        near = choice.relax(start, _STEPS, _CLOSED if len(start) <= _MANY else 10 * _CLOSED)
        return choice.improve(start, near, _NEAR * worth, _CLEAR * worth, self._rounds())

    def _rounds(self) -> tuple[tuple[int, int], ...]:
        return _ROUNDS if len(self.weight) <= _MOST_SEARCHED else ()

    def _overrun(self, choice: Ints) -> tuple[Floats, float] | None:
        """Until which deadline the cloud time is overrun most: what every option uses of it, as shares; and all."""
        if not len(self.budget_ms):
            return None
        cloud_ms = np.bincount(self.stage, self.cloud_ms[choice, self.columns], len(self.budget_ms))
        over_ms = np.cumsum(cloud_ms)[: len(self.budget_ms)] - self.budget_ms
        worst = int((over_ms / np.maximum(self.budget_ms, 1e-9)).argmax())
        if over_ms[worst] <= 0:
            return None
        scale = max(self.budget_ms[worst], 1e-9)
        return np.where(self.stage <= worst, self.cloud_ms / scale, 0.0), self.budget_ms[worst] / scale
