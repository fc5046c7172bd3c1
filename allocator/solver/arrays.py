"""A problem as arrays: a row for every request and transfer, along the other axis the options."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from allocator.problem import ROUNDING, Choice, Gap, ModeOption, Problem, Solution

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

UNMET = -1  # the choice of a row that doesn't meet its deadline
_CACHED_TABLES = 1024


class _Table(NamedTuple):
    """Columns of a tuple of options; `busy_ms` is compute time on edge and cloud, `kbit` the size on the uplink."""

    kbit: list[float]
    busy_ms: list[float]
    cloud_ms: list[float]
    work_ms: list[float]
    quality: list[float]


_tables: dict[tuple[ModeOption, ...], _Table] = {}


@dataclass(frozen=True, slots=True)
class Rows:
    """Requests first, then transfers (one option each, of quality 0 and no cloud time), in the problem's order.

    Attributes:
        need_mbps: (options, rows) least rate that meets the deadline; inf if it is more than the uplink, or if the
            first worker is free too late.
        cloud_ms: (options, rows) of workers' time.
        quality: (options, rows) times the row's weight.
        weight: (rows,).
        uplink_mbps: with the tolerance that predicted times are allowed.
        stage: (rows,) index of the row's deadline in `budget_ms`, or its length for a row in no budget.
        budget_ms: (deadlines,) worker time until each deadline whose budget can be exceeded, ascending.
    """

    need_mbps: Floats
    cloud_ms: Floats
    quality: Floats
    weight: Floats
    uplink_mbps: float
    stage: Ints
    budget_ms: Floats

    def usage(self, choice: Ints) -> tuple[float, Floats]:
        """Rates (Mbit/s) in all, and cloud work (ms) due by each deadline, of an option or UNMET for every row."""
        rows = np.flatnonzero(choice >= 0)
        picked = choice[rows]
        cloud_ms = np.bincount(self.stage[rows], self.cloud_ms[picked, rows], len(self.budget_ms)).astype(np.float64)
        return float(self.need_mbps[picked, rows].sum()), cloud_ms.cumsum()[: len(self.budget_ms)]

    def feasible(self, choice: Ints) -> bool:
        """Whether a choice keeps all budgets."""
        mbps, cloud_ms = self.usage(choice)
        return mbps <= self.uplink_mbps and bool((cloud_ms <= self.budget_ms).all())

    def objective(self, choice: Ints) -> tuple[float, float]:
        """Weight that meets its deadline, and weighted quality, of a choice."""
        rows = np.flatnonzero(choice >= 0)
        return float(self.weight[rows].sum()), float(self.quality[choice[rows], rows].sum())


def rows_of(problem: Problem) -> Rows:
    """The arrays of a problem."""
    requests, transfers = problem.requests, problem.transfers
    kbit, busy_ms, cloud_ms, work_ms, quality = _options(problem)
    due_s = np.array([r.due_s for r in requests] + [t.due_s for t in transfers], dtype=float)
    starts_s = np.array([r.starts_s for r in requests] + [t.starts_s for t in transfers], dtype=float)
    late_ms = (due_s - np.maximum(problem.now_s, starts_s)) * 1e3
    weight = np.array([r.weight for r in requests] + [t.weight for t in transfers], dtype=float)
    uplink_mbps = problem.uplink_mbps * (1 + ROUNDING)
    transfer_ms = late_ms - busy_ms
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        need = kbit / transfer_ms
    need[(transfer_ms < 0) | ((transfer_ms == 0) & (kbit > 0)) | (need > uplink_mbps)] = np.inf
    need[(transfer_ms == 0) & (kbit == 0)] = 0.0
    need[0, len(requests) :][late_ms[len(requests) :] <= 0] = np.inf
    stage = np.zeros(len(late_ms), dtype=np.intp)
    budget = np.empty(0)
    if problem.workers_free_s is not None and requests:
        deadline_ms = late_ms.copy()
        deadline_ms[: len(requests)] = (due_s[: len(requests)] - problem.now_s) * 1e3
        latest_ms = deadline_ms * (1 + ROUNDING)
        need[(cloud_ms > 0) & (problem.cloud_free_in_ms + cloud_ms > latest_ms)] = np.inf
        stage, budget = _stages(problem, deadline_ms, np.where(np.isfinite(need), work_ms, 0.0).max(axis=0))
    return Rows(need, work_ms, quality * weight, weight, uplink_mbps, stage, budget)


def _options(problem: Problem) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """kbit, busy_ms, cloud_ms, work_ms and quality, each (options, rows).

    Options that a row lacks have infinite `busy_ms`.
    """
    offered = [request.options for request in problem.requests]
    keys = list(map(id, offered))
    distinct = dict(zip(keys, offered, strict=True))
    tables = [_table(options) for options in distinct.values()]
    position = dict(zip(distinct, range(len(tables)), strict=True))
    of_request = np.fromiter(map(position.__getitem__, keys), dtype=np.intp, count=len(keys))
    layers = max((len(table.kbit) for table in tables), default=1)
    n, rows = len(of_request), len(of_request) + len(problem.transfers)
    spread = []
    for name, padding in zip(_Table._fields, (0.0, np.inf, 0.0, 0.0, 0.0), strict=True):
        columns = [getattr(table, name) for table in tables]
        padded = np.array([[*c, *[padding] * (layers - len(c))] for c in columns]).reshape(-1, layers)
        values = np.full((layers, rows), padding)
        values[:, :n] = padded.T.take(of_request, axis=1)
        spread.append(values)
    kbit, busy_ms, cloud_ms, work_ms, quality = spread
    kbit[0, n:] = [transfer.bytes_left * 8e-3 for transfer in problem.transfers]
    busy_ms[0, n:] = 0.0
    return kbit, busy_ms, cloud_ms, work_ms, quality


def _table(options: tuple[ModeOption, ...]) -> _Table:
    """Columns of a tuple of options, cached: agents share few distinct tuples."""
    table = _tables.get(options)
    if table is None:
        if len(_tables) >= _CACHED_TABLES:
            _tables.clear()
        table = _tables[options] = _Table(
            [o.wire_bytes * 8e-3 for o in options],
            [o.edge_ms + o.cloud_ms for o in options],
            [o.cloud_ms for o in options],
            [o.work_ms for o in options],
            [o.quality for o in options],
        )
    return table


def _stages(problem: Problem, deadline_ms: Floats, most_ms: Floats) -> tuple[Ints, Floats]:
    """`Rows.stage` and `Rows.budget_ms`: budgets that can't be exceeded are left out.

    A budget can be exceeded only by the sum of all rows' longest options; each row belongs to the next one that can.
    """
    distinct, stage = np.unique(deadline_ms, return_inverse=True)
    free_ms = np.sort(np.maximum(0.0, np.array(problem.workers_free_s, dtype=float) - problem.now_s)) * 1e3
    # Each worker contributes the time from when it is free to the deadline.
    workers = np.searchsorted(free_ms, distinct)
    budget = (workers * distinct - np.append(0.0, np.cumsum(free_ms))[workers]) * (1 + ROUNDING)
    binding = np.cumsum(np.bincount(stage, most_ms)) > budget
    if not binding.any():
        return np.zeros(len(deadline_ms), dtype=np.intp), np.empty(0)
    # Rows after the last binding deadline are in no budget: their stage is the number of budgets.
    following = np.concatenate(([0], np.cumsum(binding)))[:-1]
    return following[stage], budget[binding]


def solution_of(problem: Problem, choice: Ints, gap: Gap | None = None) -> Solution:
    """The solution that a choice for every row means; a request whose row is UNMET gets its fallback."""
    choices = {}
    for request, index in zip(problem.requests, choice.tolist(), strict=False):
        option = request.options[index] if index >= 0 else problem.fallback(request)
        choices[request.request_id] = Choice(option, index >= 0)
    return Solution(choices, gap=gap)
