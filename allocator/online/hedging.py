"""Decisions on an uplink that can't be foreseen: which rate to plan for, and what goes ahead of a cache.

A request has up to two safety nets. Its prompt or indices go ahead of its cache: if the cache isn't there at the last
safe moment, the worker answers from those. And its own edge answers at the last moment if nothing else has. So an
option is worth its probability to be in time times its quality, and what its nets are worth where it is not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from allocator.policies.base import Policy
from allocator.problem import ROUNDING, ModeOption, Problem, Request, Solution, local_option
from allocator.sharing import Shares, beside_transfers_at, shares_of

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
    if policy.minimum_rate:
        problems = list(beside_transfers_at(problem, merged))
    else:
        problems = [replace(problem, uplink_mbps=rate_mbps) for rate_mbps in merged]
    outlook = _Outlook(problem, [each.uplink_mbps for each in problems], list(merged.values()))
    hedges = {r.request_id: hedge for r in problem.requests if (hedge := outlook.hedge(r))}
    nets = outlook.nets(hedges)
    best: tuple[tuple[float, float], Solution, Shares] | None = None
    solved_mbps = 0.0
    for planned in problems:
        if planned.uplink_mbps < solved_mbps * APART:
            continue
        solved_mbps = planned.uplink_mbps
        solution = policy.solve(planned)
        shares = shares_of(planned, solution)
        value = outlook.expected(solution, shares, nets)
        if best is None or value > best[0]:
            best = value, solution, shares
        if value >= outlook.most:
            break
    assert best is not None
    # A hedge costs a few hundred bytes; an unforeseen delay costs more, however likely the cache is to be in time.
    _, solution, shares = best
    choices = solution.choices
    solution = replace(solution, likely=outlook.likely(solution, shares))
    return solution, {number: hedge for number, hedge in hedges.items() if choices[number].option.mode.is_cache}


def _merged(rates_mbps: Sequence[float]) -> dict[float, int]:
    """The distinct rates, ascending, and how often each is there."""
    merged: dict[float, int] = {}
    last = 0.0
    for rate_mbps in rates_mbps:
        if rate_mbps > last * SAME:
            last = rate_mbps
        merged[last] = merged.get(last, 0) + 1
    return merged


class _Outlook:
    """The requests of a problem at each of the rates that its uplink may have.

    Args:
        rates_mbps: ascending; counts: how probable each is.
    """

    def __init__(self, problem: Problem, rates_mbps: Sequence[float], counts: Sequence[int]) -> None:
        self._problem = problem
        self._rates_mbps = rates_mbps
        self._counts = counts
        self._equal_mbps = [mbps / len(problem.requests) for mbps in rates_mbps]
        self._free_in_ms = problem.cloud_free_in_ms
        self._budget_ms = problem.cloud_budget_ms(max(map(problem.due_in_ms, problem.requests)))

    @property
    def most(self) -> tuple[float, float]:
        """More than this no plan can be expected to bring: everybody's best option, in time at all rates."""
        requests = self._problem.requests
        quality = sum(r.weight * max(option.quality for option in r.options) for r in requests)
        return round(sum(r.weight for r in requests), 9), round(quality, 9)

    def hedge(self, request: Request) -> ModeOption | None:
        """The small option of the highest expected quality, if all share the uplink alike; None if none is in time."""
        best: tuple[tuple[float, int], ModeOption] | None = None
        for option in request.options:
            if not option.mode.is_question:
                continue
            times = sum(self._counts[self._first_in_time(request, option) :])
            if times:
                value = option.quality * times, times  # a profile may state no qualities
                if best is None or value > best[0]:
                    best = value, option
        return None if best is None else best[1]

    def _first_in_time(self, request: Request, option: ModeOption) -> int:
        """The index of the least rate at which the option is in time, if all share the uplink alike."""
        left_ms = self._problem.time_left_ms(request)
        waits_ms = self._free_in_ms - self._problem.starts_in_ms(request)
        for index, mbps in enumerate(self._equal_mbps):
            if option.meets(mbps, left_ms, waits_ms):
                return index
        return len(self._equal_mbps)

    def nets(self, hedges: Mapping[int, ModeOption]) -> list[dict[int, ModeOption]]:
        """For each rate, what each request is answered from if its option is late; requests without are late then."""
        nets: list[dict[int, ModeOption]] = [{} for _ in self._rates_mbps]
        stays = self._problem.on_infeasible == "local"
        for request in self._problem.requests:
            number, hedge = request.request_id, hedges.get(request.request_id)
            first = len(nets) if hedge is None else self._first_in_time(request, hedge)
            local = local_option(request.options) if stays else None
            if local is not None and local.meets(0.0, self._problem.time_left_ms(request)):
                for net in nets[:first]:
                    net[number] = local
            if hedge is not None:
                for net in nets[first:]:
                    net[number] = hedge
        return nets

    def expected(
        self, solution: Solution, shares: Shares, nets: Sequence[Mapping[int, ModeOption]]
    ) -> tuple[float, float]:
        """Expected (weight met, weighted delivered quality) of a plan, rounded so that noise decides nothing.

        Answering from hedges may take more cloud time than was planned; the excess over the budget is lost by all
        alike.
        """
        planned = [self._planned(request, solution, shares) for request in self._problem.requests]
        behind = self._behind(planned)
        met = quality = 0.0
        for rate_mbps, count, net_of in zip(self._rates_mbps, self._counts, nets, strict=True):
            # As if the channel squeezed all grants alike.
            slowdown = min(1.0, rate_mbps / shares.granted_mbps) if shares.granted_mbps > 0 else 1.0
            met_now = quality_now = work_ms = 0.0
            for number, weight, option, mbps, in_time_ms, cloud_ready_ms in planned:
                answered: ModeOption | None = option
                # As `ModeOption.meets` has it; what doesn't depend on the rate is computed once.
                if cloud_ready_ms > in_time_ms or option.latency_ms(mbps * slowdown) > in_time_ms:
                    answered = net_of.get(number)
                if number in behind:
                    answered = behind[number].answered(slowdown, net_of)
                if answered is not None:
                    met_now += weight
                    quality_now += weight * answered.quality
                    work_ms += answered.work_ms
            kept = min(1.0, self._budget_ms / work_ms) if work_ms else 1.0
            met += count * kept * met_now
            quality += count * kept * quality_now
        return round(met / sum(self._counts), 9), round(quality / sum(self._counts), 9)

    def likely(self, solution: Solution, shares: Shares) -> float:
        """How probable it is that the first request's own option is in time."""
        first = self._planned(self._problem.requests[0], solution, shares)
        in_time = 0
        for rate_mbps, count in zip(self._rates_mbps, self._counts, strict=True):
            slowdown = min(1.0, rate_mbps / shares.granted_mbps) if shares.granted_mbps > 0 else 1.0
            in_time += count * first.meets(first.mbps * slowdown)
        return in_time / sum(self._counts)

    def _behind(self, planned: Sequence["_Planned"]) -> "dict[int, _Behind]":
        """The requests that wait for the asker's transfer, because they are of the same agent."""
        requests = self._problem.requests
        asker, first = requests[0], planned[0]
        if not first.option.wire_bytes:
            return {}
        return {
            request.request_id: _Behind(self._problem, request, each, asker.request_id, first)
            for request, each in zip(requests[1:], planned[1:], strict=True)
            if request.agent_id == asker.agent_id
        }

    def _planned(self, request: Request, solution: Solution, shares: Shares) -> "_Planned":
        problem, number = self._problem, request.request_id
        option = solution.choices[number].option
        waits_ms = self._free_in_ms - problem.starts_in_ms(request)
        in_time_ms = problem.time_left_ms(request) * (1 + ROUNDING)
        cloud_ready_ms = waits_ms + option.cloud_ms if option.cloud_ms else -math.inf
        return _Planned(number, request.weight, option, shares.rates_mbps[number], in_time_ms, cloud_ready_ms)


class _Planned(NamedTuple):
    """A request in a plan.

    Attributes:
        in_time_ms: how much time there is; cloud_ready_ms: when the cloud can have answered at best.
    """

    number: int
    weight: float
    option: ModeOption
    mbps: float
    in_time_ms: float
    cloud_ready_ms: float

    def meets(self, mbps: float, busy_ms: float = 0.0) -> bool:
        """As `ModeOption.meets`, if it begins after `busy_ms`."""
        latest_ms = self.in_time_ms - busy_ms
        return self.cloud_ready_ms <= self.in_time_ms and self.option.latency_ms(mbps) <= latest_ms


class _Behind:
    """A request that is sent once the asker's transfer has ended, with the rates of both.

    A cache that an outage catches occupies its agent until its safety net is served: what waits behind it then has no
    time left to be sent.
    """

    def __init__(self, problem: Problem, request: Request, own: _Planned, asker: int, first: _Planned) -> None:
        self._own, self._asker, self._first = own, asker, first
        self._together_mbps = own.mbps + first.mbps
        local = local_option(request.options) if problem.on_infeasible == "local" else None
        self._stays = local if local is not None and local.meets(0.0, problem.time_left_ms(request)) else None

    def answered(self, slowdown: float, net_of: Mapping[int, ModeOption]) -> ModeOption | None:
        """What it is answered from, if all grants are squeezed to this share; None if it is late."""
        mbps = self._together_mbps * slowdown
        busy_ms = self._busy_ms(mbps, net_of.get(self._asker))
        if self._own.meets(mbps, busy_ms):
            return self._own.option
        net = net_of.get(self._own.number)
        if net is not None and net.wire_bytes and self._own._replace(option=net).meets(mbps, busy_ms):
            return net
        return self._stays

    def _busy_ms(self, mbps: float, net: ModeOption | None) -> float:
        """How long the agent sends for the asker: until its cache is there, or what it is answered from instead."""
        if self._first.meets(mbps):
            return self._first.option.latency_ms(mbps) - self._first.option.cloud_ms
        return self._first.in_time_ms - (net.cloud_ms if net is not None else 0.0)
