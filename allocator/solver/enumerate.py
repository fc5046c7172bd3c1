"""The exact answer for a few requests and any number of transfers, by enumeration in plain Python.

Most live decisions are of this kind, and for them it is faster than arrays.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, product
from math import prod
from typing import NamedTuple

from allocator.problem import ROUNDING, Choice, Gap, ModeOption, Problem, Request, Solution

EXACT = Gap(0.0, 0.0)
MOST_REQUESTS = 3
MOST_UNCONTENDED = 16  # requests, up to which it is tried whether all can have the options that are best alone
_MOST_COMBINATIONS = 512  # about a millisecond


class _Candidate(NamedTuple):
    """A candidate to serve a request in time, or (no option) not to."""

    mbps: float
    cloud_ms: float
    weight: float
    quality: float
    option: ModeOption | None


_UNMET = _Candidate(0.0, 0.0, 0.0, 0.0, None)


def enumerate_choices(problem: Problem) -> Solution | None:
    """The solution that `optimal` would give, or None if the problem is too large for enumeration.

    It is found for up to `MOST_REQUESTS` requests, and for up to `MOST_UNCONTENDED` if all can have the option that is
    best for them alone. Transfers must have equal weights: as many as possible are met by ascending rate then.
    """
    requests, transfers = problem.requests, problem.transfers
    if len(requests) > MOST_UNCONTENDED or any(transfer.weight != transfers[0].weight for transfer in transfers):
        return None
    uplink_mbps = problem.uplink_mbps * (1 + ROUNDING)
    needs = [transfer.least_mbps(problem.now_s) for transfer in transfers]
    if not requests:
        return Solution({})
    dues_ms = [problem.due_in_ms(request) for request in requests]
    budgets_ms = [problem.cloud_budget_ms(due_ms) * (1 + ROUNDING) for due_ms in dues_ms]
    candidates = [
        _candidates(problem, request, uplink_mbps, ms) for request, ms in zip(requests, budgets_ms, strict=True)
    ]
    ascending = sorted(need for need in needs if need <= uplink_mbps)
    rate_of_first = list(accumulate(ascending, initial=0.0))
    best_alone = tuple(of_request[0] for of_request in candidates)
    rate = sum(candidate.mbps for candidate in best_alone) + rate_of_first[-1]
    if rate <= uplink_mbps and _edf_feasible(dues_ms, budgets_ms, best_alone):
        return _solution(problem, best_alone)
    if len(requests) > MOST_REQUESTS or prod(map(len, candidates)) > _MOST_COMBINATIONS:
        return None
    transfer_weight = transfers[0].weight if transfers else 0.0
    best, best_objective = (_UNMET,) * len(requests), (-1.0, 0.0)
    for combination in product(*candidates):
        mbps = weight = quality = 0.0
        for candidate in combination:
            mbps += candidate.mbps
            weight += candidate.weight
            quality += candidate.quality
        if mbps > uplink_mbps:
            continue
        kept = bisect_right(rate_of_first, uplink_mbps - mbps) - 1
        objective = (kept * transfer_weight + weight, quality)
        if objective > best_objective and _edf_feasible(dues_ms, budgets_ms, combination):
            best, best_objective = combination, objective
    return _solution(problem, best)


def _candidates(problem: Problem, request: Request, uplink_mbps: float, budget_ms: float) -> list[_Candidate]:
    """The options that can be in time if nobody else asks, without those that another beats in every candidate."""
    time_left_ms, weight = problem.time_left_ms(request), request.weight
    longest_ms = most_ms = float("inf")
    if problem.workers_free_s is not None:
        due_ms = problem.due_in_ms(request) * (1 + ROUNDING)
        longest_ms, most_ms = due_ms - problem.cloud_free_in_ms, budget_ms
    possible = []
    for option in request.options:
        mbps = option.least_mbps(time_left_ms)
        in_time = (option.cloud_ms <= longest_ms and option.work_ms <= most_ms) or not option.cloud_ms
        if mbps <= uplink_mbps and in_time:
            possible.append(_Candidate(mbps, option.work_ms, weight, weight * option.quality, option))
    possible.sort(key=lambda candidate: (-candidate.quality, candidate.mbps, candidate.cloud_ms))
    candidates: list[_Candidate] = []
    for candidate in possible:
        if not any(other.mbps <= candidate.mbps and other.cloud_ms <= candidate.cloud_ms for other in candidates):
            candidates.append(candidate)
    return [*candidates, _UNMET]


def _edf_feasible(dues_ms: Sequence[float], budgets_ms: Sequence[float], combination: Sequence[_Candidate]) -> bool:
    """Whether, for every deadline, the work due by then fits; a single candidate always does."""
    if len(dues_ms) == 1 or budgets_ms[0:1] == [float("inf")]:
        return True
    work = sorted(zip(dues_ms, budgets_ms, (candidate.cloud_ms for candidate in combination), strict=True))
    return all(
        done_ms <= budget_ms
        for done_ms, (_, budget_ms, _) in zip(accumulate(cloud_ms for *_, cloud_ms in work), work, strict=True)
    )


def _solution(problem: Problem, combination: Sequence[_Candidate]) -> Solution:
    choices = {}
    for request, candidate in zip(problem.requests, combination, strict=True):
        option = candidate.option or problem.fallback(request)
        choices[request.request_id] = Choice(option, candidate.option is not None)
    return Solution(choices, gap=EXACT)
