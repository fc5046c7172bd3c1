"""`scout allocate`: a policy's answer to one problem, and why some can't be served in time."""

import math
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from allocator.policies import make_policy
from allocator.problem import ROUNDING, Problem, Request, Solution
from allocator.sharing import finish_times_s, sending_of, shares_of
from cluster.experiments.problem_file import NamedProblem

SHOWN = 10  # agents with one reason, and reasons; JSON has all


def allocate(named: NamedProblem, policy: str) -> dict[str, Any]:
    """The answer of a policy, as one document.

    Raises:
        ValueError: no such policy, or it can't serve these modes.
    """
    problem = named.problem
    solution = make_policy(policy).solve(problem)
    rates_mbps = shares_of(problem, solution).rates_mbps
    latencies_ms = predicted_latencies_ms(problem, solution, rates_mbps)
    needed_mbps = [_needed_mbps(problem, request, solution) for request in problem.requests]
    left_mbps = problem.uplink_mbps - sum(needed_mbps)
    rows = []
    for name, request in zip(named.names, problem.requests, strict=True):
        option, meets = solution.choices[request.request_id]
        mbps, latency_ms = rates_mbps[request.request_id], latencies_ms[request.request_id]
        rows.append(
            {
                "agent": name,
                "mode": str(option.mode),
                "mbps": mbps,
                "latency_ms": latency_ms if math.isfinite(latency_ms) else None,
                "meets_deadline": meets,
                "quality": option.quality,
                "why_late": None if meets else why_late(request, problem, solution, mbps, left_mbps),
            }
        )
    return {
        "policy": policy,
        "uplink_mbps": problem.uplink_mbps,
        "deadlines_met": sum(row["meets_deadline"] for row in rows),
        "credited_quality": sum(row["quality"] for row in rows),
        "delivered_quality": sum(row["quality"] for row in rows if row["meets_deadline"]),
        "cloud_time_suffices": cloud_time_suffices(problem, solution),
        "assignments": rows,
        "unserved": [row["agent"] for row in rows if not row["meets_deadline"]],
    }


def _needed_mbps(problem: Problem, request: Request, solution: Solution) -> float:
    """The rate that a request in time takes from the others: its share, or the lowest that is enough."""
    option, meets = solution.choices[request.request_id]
    if not meets:
        return 0.0
    return solution.grants_mbps.get(request.agent_id) or option.least_mbps(problem.time_left_ms(request))


def predicted_latencies_ms(problem: Problem, solution: Solution, rates_mbps: Mapping[int, float]) -> dict[int, float]:
    """Latency by request id: at its rate if that is in time, else when the uplink has carried it after the others."""
    ends_s = {} if solution.grants_mbps else finish_times_s(sending_of(problem, solution), problem.uplink_mbps, 0.0)
    latencies_ms = {}
    for request in problem.requests:
        option, meets = solution.choices[request.request_id]
        latency_ms = problem.ready_ms(request, option, rates_mbps[request.request_id])
        if not meets and request.request_id in ends_s:
            latency_ms = ends_s[request.request_id] * 1e3 + option.cloud_ms
        latencies_ms[request.request_id] = latency_ms
    return latencies_ms


def cloud_time_suffices(problem: Problem, solution: Solution) -> bool:
    """Whether the workers have the time for all that is promised: policies as published don't know of them."""
    promised_ms = 0.0
    for request in sorted(problem.requests, key=lambda request: request.due_s):
        option, meets = solution.choices[request.request_id]
        if meets:
            promised_ms += option.cloud_ms
            if promised_ms > problem.cloud_budget_ms(problem.due_in_ms(request)) * (1 + ROUNDING):
                return False
    return True


def why_late(request: Request, problem: Problem, solution: Solution, grant_mbps: float, left_mbps: float) -> str:
    """Why a request misses its deadline: its own compute, the uplink, the others, its share, or the cloud.

    Args:
        grant_mbps: its share; left_mbps: the rate that the requests in time leave of the uplink.
    """
    time_left_ms = problem.time_left_ms(request)
    least_mbps, mode = min((option.least_mbps(time_left_ms), str(option.mode)) for option in request.options)
    if math.isinf(least_mbps):
        compute_ms, mode = min((option.edge_ms + option.cloud_ms, str(option.mode)) for option in request.options)
        return f"even {mode} computes for {compute_ms:g} ms of the {time_left_ms:g}, before any transfer"
    if least_mbps > problem.uplink_mbps:
        return f"even {mode} alone needs {least_mbps:.1f} Mbit/s of the {problem.uplink_mbps:g}"
    if least_mbps > left_mbps:
        return f"even {mode} needs {least_mbps:.1f} Mbit/s, more than the {max(0, left_mbps):.1f} that is left"
    if least_mbps > grant_mbps:
        return f"even {mode} needs {least_mbps:.1f} Mbit/s, more than its share of {grant_mbps:.1f}"
    chosen = solution.choices[request.request_id].option
    if chosen.least_mbps(time_left_ms) > grant_mbps:
        return f"{chosen.mode} takes too long on its share of {grant_mbps:.1f} Mbit/s"
    return f"no cloud worker has the time for it within {time_left_ms:g} ms"


def show(console: Console, answer: dict[str, Any]) -> None:
    """Print an answer as a table and, below it, who can't be served in time."""
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("agent")
    table.add_column("mode")
    for name in ("Mbit/s", "latency ms", "in time", "quality"):
        table.add_column(name, justify="right")
    for row in answer["assignments"]:
        table.add_row(
            str(row["agent"]),
            row["mode"],
            f"{row['mbps']:.2f}",
            "never" if row["latency_ms"] is None else f"{row['latency_ms']:.0f}",
            "yes" if row["meets_deadline"] else Text("no", style="red"),
            f"{row['quality']:g}",
        )
    console.print(table)
    console.print(
        f"{answer['policy']}: {answer['deadlines_met']} of {len(answer['assignments'])} deadlines met on "
        f"{answer['uplink_mbps']:g} Mbit/s; quality {answer['delivered_quality']:.1f} delivered, "
        f"{answer['credited_quality']:.1f} if late answers count.",
        highlight=False,
        soft_wrap=True,
    )
    agents_by_reason: dict[str, list[str]] = {}
    for row in answer["assignments"]:
        if not row["meets_deadline"]:
            agents_by_reason.setdefault(row["why_late"], []).append(str(row["agent"]))
    reasons = [f"{_listed(agents)}: {why}" for why, agents in agents_by_reason.items()]
    if reasons:
        shown = "; ".join(reasons[:SHOWN]) + ("; ..." if len(reasons) > SHOWN else "")
        console.print(f"Not in time: {shown}.", highlight=False, soft_wrap=True)
    if not answer["cloud_time_suffices"]:
        message = f"{answer['policy']} doesn't know of the cloud's slots: they have no time for all that it promises."
        console.print(message, style="bold red", highlight=False, soft_wrap=True)


def _listed(agents: list[str]) -> str:
    rest = f" and {len(agents) - SHOWN} more" if len(agents) > SHOWN else ""
    return f"agent{'s' if agents[1:] else ''} {', '.join(agents[:SHOWN])}{rest}"
