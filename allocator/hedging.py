"""Hedging against a channel that can't be foreseen: which rate to plan for, and what goes ahead of which cache.

A hedged request sends its prompt or indices ahead of its cache. If the cache isn't there at the last safe moment, the
worker answers from those: the cache may be chosen for a rate that is likely instead of one that is safe.
"""

from collections.abc import Sequence
from dataclasses import replace

from allocator.grants import predicted_ms
from allocator.policies.base import Policy
from allocator.problem import ROUNDING, Assignment, ModeOption, Problem, Request, Solution

HEDGE_MODES = ("prompt", "scout")


def solve_hedged(policy: Policy, problem: Problem, rates_mbps: Sequence[float]) -> tuple[Solution, dict[int, str]]:
    """Plan for the rate at which the plan, hedges included, can be expected to deliver most.

    The policy solves the problem for each rate, and each plan is judged over all of them: the weight that can be
    expected to be met counts first, then the expected delivered quality.

    Args:
        rates_mbps: equally probable rates of the uplink, ascending.

    Returns:
        The chosen plan, and for every request that has a cache in it the mode that should go ahead.
    """
    hedges = {r.request_id: hedge for r in problem.requests if (hedge := _hedge(problem, r, rates_mbps[0]))}
    best: tuple[tuple[float, float], Solution] | None = None
    for rate_mbps in dict.fromkeys(rates_mbps):
        solution = policy.solve(replace(problem, uplink_mbps=rate_mbps))
        value = _expected(problem, solution, hedges, rates_mbps)
        if best is None or value > best[0]:
            best = value, solution
    assert best is not None
    # However likely a cache is to be in time, what nobody foresaw costs more than a few hundred bytes.
    ahead = {}
    for number, hedge in hedges.items():
        mode = best[1].assignments[number].mode
        if mode not in HEDGE_MODES and mode != "local":
            ahead[number] = hedge.mode
    return best[1], ahead


def _hedge(problem: Problem, request: Request, slowest_mbps: float) -> ModeOption | None:
    """The best of what may go ahead and can itself be relied on."""
    candidates = [o for o in request.options if o.mode in HEDGE_MODES and _in_time(problem, request, o, slowest_mbps)]
    return max(candidates, key=lambda o: o.quality, default=None)


def _expected(
    problem: Problem, solution: Solution, hedges: dict[int, ModeOption], rates_mbps: Sequence[float]
) -> tuple[float, float]:
    """Expected (weight met, weighted delivered quality) of a plan, rounded so that noise decides nothing.

    Answering from hedges may take more cloud time than was planned; what exceeds the budget is lost by all alike.
    """
    budget_ms = problem.cloud_budget_ms(max(r.starts_in_ms + r.time_left_ms for r in problem.requests))
    met = quality = 0.0
    for rate_mbps in rates_mbps:
        slowdown = _slowdown(solution, rate_mbps)
        met_now = quality_now = cloud_ms = 0.0
        for request in problem.requests:
            assignment: Assignment = solution.assignments[request.request_id]
            option = _option(request, assignment.mode)
            if not _in_time(problem, request, option, assignment.grant_mbps * slowdown):
                if request.request_id not in hedges:
                    continue
                option = hedges[request.request_id]
            met_now += request.weight
            quality_now += request.weight * option.quality
            cloud_ms += option.cloud_ms
        kept = min(1.0, budget_ms / cloud_ms) if cloud_ms else 1.0
        met += kept * met_now
        quality += kept * quality_now
    return round(met / len(rates_mbps), 9), round(quality / len(rates_mbps), 9)


def _slowdown(solution: Solution, rate_mbps: float) -> float:
    """By how much grants shrink on a channel that carries `rate_mbps` (as if it squeezed all alike)."""
    granted_mbps = sum(solution.grants_mbps.values())
    return min(1.0, rate_mbps / granted_mbps) if granted_mbps > 0 else 1.0


def _in_time(problem: Problem, request: Request, option: ModeOption, mbps: float) -> bool:
    return predicted_ms(problem, request, option, mbps) <= request.time_left_ms * (1 + ROUNDING)


def _option(request: Request, mode: str) -> ModeOption:
    return next(option for option in request.options if option.mode == mode)
