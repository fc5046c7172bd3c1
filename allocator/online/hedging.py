"""Hedging against a channel that can't be foreseen: the rate to plan for, and the payload that goes ahead of a cache.

A hedged request sends its prompt or indices ahead of its cache. If the cache isn't there at the last safe moment, the
worker answers from those: the cache may be chosen for a rate that is likely instead of one that is safe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from allocator.policies.base import Policy
from allocator.problem import ModeOption, Problem, Request, Solution
from allocator.sharing import Shares, beside_transfers, shares_of


def solve_hedged(
    policy: Policy, problem: Problem, rates_mbps: Sequence[float]
) -> tuple[Solution, dict[int, ModeOption]]:
    """Plan for the rate at which the plan, hedges included, has the highest expected delivery.

    The policy solves the problem for each rate, and each plan is judged over all of them: the expected weight that is
    met counts first, then the expected delivered quality.

    Args:
        rates_mbps: equally probable rates of the uplink, ascending.

    Returns:
        The chosen plan, and for every request that has a cache in it the option that should go ahead.
    """
    problems = [_at(policy, problem, rate_mbps) for rate_mbps in rates_mbps]
    slowest = problems[0]
    hedges = {r.request_id: hedge for r in slowest.requests if (hedge := _hedge(slowest, r))}
    best: tuple[tuple[float, float], Solution] | None = None
    for i, planned in enumerate(problems):
        if i and planned.uplink_mbps == problems[i - 1].uplink_mbps:
            continue
        solution = policy.solve(planned)
        value = _expected(problems, solution, shares_of(planned, solution), hedges)
        if best is None or value > best[0]:
            best = value, solution
    assert best is not None
    # A hedge costs a few hundred bytes; an unforeseen delay costs more, however likely the cache is to be in time.
    choices = best[1].choices
    return best[1], {number: hedge for number, hedge in hedges.items() if choices[number].option.mode.is_cache}


def _at(policy: Policy, problem: Problem, rate_mbps: float) -> Problem:
    at_rate = replace(problem, uplink_mbps=rate_mbps)
    return beside_transfers(at_rate) if policy.minimum_rate else at_rate


def _hedge(slowest: Problem, request: Request) -> ModeOption | None:
    """The best small option that can itself be relied on, even if all share the slowest rate."""
    share_mbps = slowest.uplink_mbps / len(slowest.requests)
    candidates = [o for o in request.options if o.mode.is_question and slowest.meets(request, o, share_mbps)]
    return max(candidates, key=lambda o: o.quality, default=None)


def _expected(
    problems: Sequence[Problem], solution: Solution, shares: Shares, hedges: Mapping[int, ModeOption]
) -> tuple[float, float]:
    """Expected (weight met, weighted delivered quality) of a plan, rounded so that noise decides nothing.

    Answering from hedges may take more cloud time than was planned; the excess over the budget is lost by all alike.
    """
    met = quality = 0.0
    for problem in problems:
        # As if the channel squeezed all grants alike.
        slowdown = min(1.0, problem.uplink_mbps / shares.granted_mbps) if shares.granted_mbps > 0 else 1.0
        free_in_ms = problem.cloud_free_in_ms
        met_now = quality_now = cloud_ms = 0.0
        for request in problem.requests:
            option = solution.choices[request.request_id].option
            mbps = shares.rates_mbps[request.request_id] * slowdown
            waits_ms = free_in_ms - problem.starts_in_ms(request)
            if not option.meets(mbps, problem.time_left_ms(request), waits_ms):
                if request.request_id not in hedges:
                    continue
                option = hedges[request.request_id]
            met_now += request.weight
            quality_now += request.weight * option.quality
            cloud_ms += option.cloud_ms
        budget_ms = problem.cloud_budget_ms(max(problem.due_in_ms(request) for request in problem.requests))
        kept = min(1.0, budget_ms / cloud_ms) if cloud_ms else 1.0
        met += kept * met_now
        quality += kept * quality_now
    return round(met / len(problems), 9), round(quality / len(problems), 9)
