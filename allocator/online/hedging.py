"""Hedging against a channel that can't be foreseen: which rate to plan for, and what goes ahead of which cache.

A hedged request sends its prompt or indices ahead of its cache. If the cache isn't there at the last safe moment, the
worker answers from those: the cache may be chosen for a rate that is likely instead of one that is safe.
"""

from collections.abc import Sequence
from dataclasses import replace

from allocator.online.due_shares import beside_transfers
from allocator.policies.base import Policy
from allocator.problem import ROUNDING, Assignment, ModeOption, Problem, Request, Solution
from allocator.solver.grants import predicted_ms
from kvcache.modes import Mode


def solve_hedged(policy: Policy, problem: Problem, rates_mbps: Sequence[float]) -> tuple[Solution, dict[int, Mode]]:
    """Plan for the rate at which the plan, hedges included, can be expected to deliver most.

    The policy solves the problem for each rate, and each plan is judged over all of them: the weight that can be
    expected to be met counts first, then the expected delivered quality.

    Args:
        rates_mbps: equally probable rates of the uplink, ascending.

    Returns:
        The chosen plan, and for every request that has a cache in it the mode that should go ahead.
    """
    problems = [_at(policy, problem, rate_mbps) for rate_mbps in rates_mbps]
    slowest = problems[0]
    hedges = {r.request_id: hedge for r in slowest.requests if (hedge := _hedge(slowest, r))}
    best: tuple[tuple[float, float], Solution] | None = None
    for i, planned in enumerate(problems):
        if i and planned.uplink_mbps == problems[i - 1].uplink_mbps:
            continue
        solution = policy.solve(planned)
        value = _expected(problems, solution, hedges)
        if best is None or value > best[0]:
            best = value, solution
    assert best is not None
    # However likely a cache is to be in time, what nobody foresaw costs more than a few hundred bytes.
    assigned = best[1].assignments
    return best[1], {number: hedge.mode for number, hedge in hedges.items() if assigned[number].mode.is_cache}


def _at(policy: Policy, problem: Problem, rate_mbps: float) -> Problem:
    at_rate = replace(problem, uplink_mbps=rate_mbps)
    return beside_transfers(at_rate) if policy.by_need else at_rate


def _hedge(slowest: Problem, request: Request) -> ModeOption | None:
    """The best of what may go ahead and can itself be relied on, even if all share the slowest rate."""
    share_mbps = slowest.uplink_mbps / len(slowest.requests)
    candidates = [o for o in request.options if o.mode.is_question and _in_time(slowest, request, o, share_mbps)]
    return max(candidates, key=lambda o: o.quality, default=None)


def _expected(problems: Sequence[Problem], solution: Solution, hedges: dict[int, ModeOption]) -> tuple[float, float]:
    """Expected (weight met, weighted delivered quality) of a plan, rounded so that noise decides nothing.

    Answering from hedges may take more cloud time than was planned; what exceeds the budget is lost by all alike.
    """
    met = quality = 0.0
    granted_mbps = sum(solution.grants_mbps.values())
    for problem in problems:
        # As if the channel squeezed all grants alike.
        slowdown = min(1.0, problem.uplink_mbps / granted_mbps) if granted_mbps > 0 else 1.0
        met_now = quality_now = cloud_ms = 0.0
        for request in problem.requests:
            assignment: Assignment = solution.assignments[request.request_id]
            option = next(option for option in request.options if option.mode == assignment.mode)
            if not _in_time(problem, request, option, assignment.grant_mbps * slowdown):
                if request.request_id not in hedges:
                    continue
                option = hedges[request.request_id]
            met_now += request.weight
            quality_now += request.weight * option.quality
            cloud_ms += option.cloud_ms
        budget_ms = problem.cloud_budget_ms(max(r.starts_in_ms + r.time_left_ms for r in problem.requests))
        kept = min(1.0, budget_ms / cloud_ms) if cloud_ms else 1.0
        met += kept * met_now
        quality += kept * quality_now
    return round(met / len(problems), 9), round(quality / len(problems), 9)


def _in_time(problem: Problem, request: Request, option: ModeOption, mbps: float) -> bool:
    return predicted_ms(problem, request, option, mbps) <= request.time_left_ms * (1 + ROUNDING)
