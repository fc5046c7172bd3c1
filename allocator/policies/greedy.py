"""The greedy allocation of the papers: first each request by its least rate, then upgrades by gain per Mbit/s."""

import heapq

import numpy as np

from allocator.problem import Problem, Solution
from allocator.solver.arrays import UNMET, Ints, Rows, rows_of, solution_of


class Greedy:
    """Each request in the mode of the least rate, by ascending rate, until the uplink is used up.

    Then, repeatedly, the feasible upgrade with the highest gain of quality per Mbit/s.
    """

    name = "greedy"
    static_shares = False
    minimum_rate = True

    def solve(self, problem: Problem) -> Solution:
        return solution_of(problem, greedy_choice(rows_of(problem)))


def greedy_choice(rows: Rows) -> Ints:
    """The option of every row, UNMET if none."""
    choice = np.full(len(rows.weight), UNMET, dtype=np.intp)
    if not len(choice):
        return choice
    slack = _Slack(rows)
    least = rows.need_mbps.min(axis=0)
    # Of options of equal need (usually 0, that of `local`), the best.
    cheapest = np.where(rows.need_mbps == least, rows.quality, -np.inf).argmax(axis=0)
    for row in np.argsort(least, kind="stable").tolist():
        if np.isfinite(least[row]) and slack.replace(row, UNMET, int(cheapest[row])):
            choice[row] = cheapest[row]
    need, quality = rows.need_mbps.T.tolist(), rows.quality.T.tolist()
    untried = [set(range(len(need[row]))) for row in range(len(choice))]

    def best_upgrade(row: int) -> tuple[float, int, int] | None:
        """(-gain per Mbit/s, row, option) of the best upgrade that has not been tried yet."""
        now = int(choice[row])
        ranked = [
            (-(quality[row][o] - quality[row][now]) / max(need[row][o] - need[row][now], 1e-12), row, o)
            for o in untried[row]
            if quality[row][o] > quality[row][now] and need[row][o] < np.inf
        ]
        return min(ranked, default=None)

    upgrades = [upgrade for row in np.flatnonzero(choice >= 0).tolist() if (upgrade := best_upgrade(row))]
    heapq.heapify(upgrades)
    while upgrades:
        _, row, option = heapq.heappop(upgrades)
        untried[row].discard(option)  # if infeasible now, it stays so: usage only grows
        if slack.replace(row, int(choice[row]), option):
            choice[row] = option
        if following := best_upgrade(row):
            heapq.heappush(upgrades, following)
    return choice


class _Slack:
    """The unused rest of each budget."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._mbps = rows.uplink_mbps
        self._cloud_ms = rows.budget_ms.copy()

    def replace(self, row: int, old: int, new: int) -> bool:
        """Account for a row's change of option (UNMET: none) if the budgets hold then; whether they do."""
        need, cloud = self._rows.need_mbps[:, row], self._rows.cloud_ms[:, row]
        more_mbps = need[new] - (need[old] if old >= 0 else 0.0)
        more_ms = cloud[new] - (cloud[old] if old >= 0 else 0.0)
        later = self._cloud_ms[self._rows.stage[row] :]
        if more_mbps > self._mbps or (more_ms > 0 and len(later) and more_ms > later.min()):
            return False
        self._mbps -= more_mbps
        later -= more_ms
        return True
