"""The exact answer for a few requests among any number of transfers, in plain Python: what most live calls ask."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, product
from math import prod
from typing import NamedTuple

from allocator.problem import ROUNDING, Choice, ModeOption, Problem, Request, Solution
from allocator.sharing import fallback_option

MOST_REQUESTS = 3
MOST_CONTENT = 16  # requests for whom it is tried whether each can have the best it could have alone
_MOST_COMBINATIONS = 512


class _Way(NamedTuple):
    """A way to serve a request in time, or (no option) not to."""

    mbps: float
    cloud_ms: float
    weight: float
    quality: float
    option: ModeOption | None


_UNMET = _Way(0.0, 0.0, 0.0, 0.0, None)


def few_choice(problem: Problem) -> Solution | None:
    """The best choice; None if the problem isn't of this kind.

    Transfers must count alike: then as many as possible are met by meeting the least demanding first.
    """
    requests, transfers = problem.requests, problem.transfers
    if len(requests) > MOST_CONTENT or any(transfer.weight != transfers[0].weight for transfer in transfers):
        return None
    uplink_mbps = problem.uplink_mbps * (1 + ROUNDING)
    needs = [transfer.least_mbps(problem.now_s) for transfer in transfers]
    if not requests:
        return Solution({})
    dues_ms = [problem.due_in_ms(request) for request in requests]
    budgets_ms = [problem.cloud_budget_ms(due_ms) * (1 + ROUNDING) for due_ms in dues_ms]
    ways = [_ways(problem, request, uplink_mbps, ms) for request, ms in zip(requests, budgets_ms, strict=True)]
    ascending = sorted(need for need in needs if need <= uplink_mbps)
    together = list(accumulate(ascending, initial=0.0))
    firsts = tuple(of_request[0] for of_request in ways)
    if sum(way.mbps for way in firsts) + together[-1] <= uplink_mbps and _cloud_holds(dues_ms, budgets_ms, firsts):
        return _solution(problem, firsts)
    if len(requests) > MOST_REQUESTS or prod(map(len, ways)) > _MOST_COMBINATIONS:
        return None
    each = transfers[0].weight if transfers else 0.0
    best, best_worth = (_UNMET,) * len(requests), (-1.0, 0.0)
    for combination in product(*ways):
        mbps = weight = quality = 0.0
        for way in combination:
            mbps += way.mbps
            weight += way.weight
            quality += way.quality
        if mbps > uplink_mbps:
            continue
        kept = bisect_right(together, uplink_mbps - mbps) - 1
        worth = (kept * each + weight, quality)
        if worth > best_worth and _cloud_holds(dues_ms, budgets_ms, combination):
            best, best_worth = combination, worth
    return _solution(problem, best)


def _ways(problem: Problem, request: Request, uplink_mbps: float, budget_ms: float) -> list[_Way]:
    """The options that can be in time if nobody else asks, without those that another beats in every way."""
    time_left_ms, weight = problem.time_left_ms(request), request.weight
    longest_ms = float("inf")
    if problem.workers_free_s is not None:
        due_ms = problem.due_in_ms(request) * (1 + ROUNDING)
        longest_ms = min(budget_ms, due_ms - problem.cloud_free_in_ms)
    possible = []
    for option in request.options:
        mbps = option.least_mbps(time_left_ms)
        if mbps <= uplink_mbps and (option.cloud_ms <= longest_ms or not option.cloud_ms):
            possible.append(_Way(mbps, option.cloud_ms, weight, weight * option.quality, option))
    possible.sort(key=lambda way: (-way.quality, way.mbps, way.cloud_ms))
    ways: list[_Way] = []
    for way in possible:
        if not any(other.mbps <= way.mbps and other.cloud_ms <= way.cloud_ms for other in ways):
            ways.append(way)
    return [*ways, _UNMET]


def _cloud_holds(dues_ms: Sequence[float], budgets_ms: Sequence[float], combination: Sequence[_Way]) -> bool:
    """Whether the work due until each deadline fits until then; ways alone fit by themselves."""
    if len(dues_ms) == 1 or budgets_ms[0:1] == [float("inf")]:
        return True
    work = sorted(zip(dues_ms, budgets_ms, (way.cloud_ms for way in combination), strict=True))
    return all(
        done_ms <= budget_ms
        for done_ms, (_, budget_ms, _) in zip(accumulate(cloud_ms for *_, cloud_ms in work), work, strict=True)
    )


def _solution(problem: Problem, combination: Sequence[_Way]) -> Solution:
    choices = {}
    for request, way in zip(problem.requests, combination, strict=True):
        option = way.option or fallback_option(request, problem.on_infeasible)
        choices[request.request_id] = Choice(option, way.option is not None)
    return Solution(choices)
