"""Decisions on an uplink that can't be foreseen: which rate to plan for, and what goes ahead of a cache.

A request has up to two safety nets. Its prompt or indices go ahead of its cache: if the cache isn't there at the last
safe moment, the worker answers from those. And its own edge answers at the last moment if nothing else has. So an
option is worth its probability to be in time times its quality, and what its nets are worth where it is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from allocator.policies.base import Policy
from allocator.problem import ModeOption, Problem, Request, Solution, local_option
from allocator.sharing import Shares, beside_transfers, shares_of

# Plans for rates that are nearer to one another than this factor hardly differ: each takes a solve.
APART = 1.15
# Rates that differ by less are one: on a steady uplink nearly all are.
SAME = 1 + 1e-9


def solve_hedged(
    policy: Policy, problem: Problem, rates_mbps: Sequence[float]
) -> tuple[Solution, dict[int, ModeOption]]:
    """Plan for the rate at which the plan, nets included, has the highest expected delivery.

    The policy solves the problem for each rate, and each plan is judged over all of them: the expected weight that is
    met counts first, then the expected delivered quality.

    Args:
        rates_mbps: equally probable mean rates of the uplink until the first request is due, ascending.

    Returns:
        The chosen plan, and for every request that has a cache in it the option that should go ahead.
    """
    merged = _merged(rates_mbps)
    problems = [_at(policy, problem, rate_mbps) for rate_mbps in merged]
    counts = list(merged.values())
    hedges = {r.request_id: hedge for r in problem.requests if (hedge := _hedge(problems, counts, r))}
    nets = [_nets(at_rate, hedges) for at_rate in problems]
    best: tuple[tuple[float, float], Solution] | None = None
    solved_mbps = 0.0
    for planned in problems:
        if planned.uplink_mbps < solved_mbps * APART:
            continue
        solved_mbps = planned.uplink_mbps
        solution = policy.solve(planned)
        value = _expected(problems, counts, solution, shares_of(planned, solution), nets)
        if best is None or value > best[0]:
            best = value, solution
    assert best is not None
    # A hedge costs a few hundred bytes; an unforeseen delay costs more, however likely the cache is to be in time.
    choices = best[1].choices
    return best[1], {number: hedge for number, hedge in hedges.items() if choices[number].option.mode.is_cache}


def _merged(rates_mbps: Sequence[float]) -> dict[float, int]:
    """The distinct rates, ascending, and how often each is there."""
    merged: dict[float, int] = {}
    last = 0.0
    for rate_mbps in rates_mbps:
        if rate_mbps > last * SAME:
            last = rate_mbps
        merged[last] = merged.get(last, 0) + 1
    return merged


def _at(policy: Policy, problem: Problem, rate_mbps: float) -> Problem:
    at_rate = replace(problem, uplink_mbps=rate_mbps)
    return beside_transfers(at_rate) if policy.minimum_rate else at_rate


def _hedge(problems: Sequence[Problem], counts: Sequence[int], request: Request) -> ModeOption | None:
    """The small option of the highest expected quality, if all share the uplink alike; None if none is ever in time."""
    best: tuple[tuple[float, int], ModeOption] | None = None
    for option in request.options:
        if not option.mode.is_question:
            continue
        times = sum(n for problem, n in zip(problems, counts, strict=True) if _arrives(problem, request, option))
        if times:
            value = option.quality * times, times  # a profile may state no qualities
            if best is None or value > best[0]:
                best = value, option
    return None if best is None else best[1]


def _arrives(problem: Problem, request: Request, option: ModeOption) -> bool:
    return problem.meets(request, option, problem.uplink_mbps / len(problem.requests))


def _nets(problem: Problem, hedges: Mapping[int, ModeOption]) -> dict[int, ModeOption]:
    """What each request is answered from at this rate if its option is late; requests without are late then."""
    nets: dict[int, ModeOption] = {}
    for request in problem.requests:
        hedge = hedges.get(request.request_id)
        local = local_option(request.options) if problem.on_infeasible == "local" else None
        if hedge is not None and _arrives(problem, request, hedge):
            nets[request.request_id] = hedge
        elif local is not None and local.meets(0.0, problem.time_left_ms(request)):
            nets[request.request_id] = local
    return nets


def _expected(
    problems: Sequence[Problem],
    counts: Sequence[int],
    solution: Solution,
    shares: Shares,
    nets: Sequence[Mapping[int, ModeOption]],
) -> tuple[float, float]:
    """Expected (weight met, weighted delivered quality) of a plan, rounded so that noise decides nothing.

    Args:
        counts, nets: for each of the problems, which differ in the rate.

    Answering from hedges may take more cloud time than was planned; the excess over the budget is lost by all alike.
    """
    met = quality = 0.0
    for problem, count, net_of in zip(problems, counts, nets, strict=True):
        # As if the channel squeezed all grants alike.
        slowdown = min(1.0, problem.uplink_mbps / shares.granted_mbps) if shares.granted_mbps > 0 else 1.0
        free_in_ms = problem.cloud_free_in_ms
        met_now = quality_now = cloud_ms = 0.0
        for request in problem.requests:
            option = solution.choices[request.request_id].option
            mbps = shares.rates_mbps[request.request_id] * slowdown
            waits_ms = free_in_ms - problem.starts_in_ms(request)
            if not option.meets(mbps, problem.time_left_ms(request), waits_ms):
                if request.request_id not in net_of:
                    continue
                option = net_of[request.request_id]
            met_now += request.weight
            quality_now += request.weight * option.quality
            cloud_ms += option.work_ms
        budget_ms = problem.cloud_budget_ms(max(problem.due_in_ms(request) for request in problem.requests))
        kept = min(1.0, budget_ms / cloud_ms) if cloud_ms else 1.0
        met += count * kept * met_now
        quality += count * kept * quality_now
    return round(met / sum(counts), 9), round(quality / sum(counts), 9)
