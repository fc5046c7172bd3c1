"""Exhaustive search, for problems small enough: the reference for the exact policy."""

import numpy as np

from allocator.problem import ROUNDING, Problem

_MOST_CHOICES = 5_000_000


def brute_force(problem: Problem) -> tuple[float, float]:
    """The highest weight that can meet its deadline, and the highest weighted quality with that weight.

    Written from the definition in `allocator.problem`; it shares no code with the policies.

    Raises:
        ValueError: there are too many choices.
    """
    deadlines_ms = sorted({problem.due_in_ms(request) for request in problem.requests})
    # Usage and value of an option: Mbit/s, cloud ms until each deadline, weight, quality.
    nothing = [0.0] * (3 + len(deadlines_ms))
    rows = [
        [nothing, [transfer.least_mbps(problem.now_s), *nothing[:-3], transfer.weight, 0.0]]
        for transfer in problem.transfers
        if transfer.least_mbps(problem.now_s) < float("inf")
    ]
    for request in problem.requests:
        due_ms = problem.due_in_ms(request)
        row = [nothing]
        for option in request.options:
            waits = problem.workers_free_s is not None and option.cloud_ms > 0
            in_time = not waits or problem.cloud_free_in_ms + option.cloud_ms <= due_ms * (1 + ROUNDING)
            mbps = option.least_mbps(problem.time_left_ms(request))
            if in_time and mbps < float("inf"):
                cloud_ms = [option.work_ms if due_ms <= until_ms else 0.0 for until_ms in deadlines_ms]
                row.append([mbps, *cloud_ms, request.weight, request.weight * option.quality])
        rows.append(row)
    if np.prod([float(len(row)) for row in rows]) > _MOST_CHOICES:
        raise ValueError("too many choices for brute force")
    budgets = np.array([problem.uplink_mbps, *map(problem.cloud_budget_ms, deadlines_ms)]) * (1 + ROUNDING)
    totals = np.zeros((1, len(nothing)))
    for row in rows:
        totals = (totals[:, None, :] + np.array(row)[None, :, :]).reshape(-1, len(nothing))
        totals = totals[(totals[:, :-2] <= budgets).all(axis=1)]
    weight = float(totals[:, -2].max())
    return weight, float(totals[totals[:, -2] >= weight - 1e-9 * (1 + weight), -1].max())
