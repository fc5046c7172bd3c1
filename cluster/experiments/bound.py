"""The upper bound on what any allocator can have of a scenario: see `allocator.bench.hindsight`."""

from collections.abc import Callable, Iterator

import numpy as np

from agents.offer import Offer
from allocator.bench.hindsight import MAX_S, Hindsight, Released, Resources, TooLarge, hindsight
from allocator.solver.arrays import Floats
from cluster.scenario.schema import Scenario
from cluster.simulated.tcp_model import AgentPath
from reports.schema import Bound

BYTES_PER_S = 125_000.0  # at 1 Mbit/s
BESIDE_RUNS_S = 10.0  # for either program of a run's bound: runs mustn't wait long for what only stands beside them


def _unsaid(reason: str) -> None:
    """Nobody wants to know."""


def bound_of(
    scenario: Scenario, whole: bool = False, most_s: float = MAX_S, say: Callable[[str], None] = _unsaid
) -> Hindsight | None:
    """Upper bounds on simulated turns of a scenario, whatever the allocator.

    None where something is unknown beforehand (events), there are too many requests, or the solver finds no optimum.

    Args:
        whole, most_s: see `hindsight`.
        say: is told why there is none.
    """
    if scenario.events:
        say("no bound: what events do is unknown beforehand")
        return None
    requests = list(_released(scenario))
    end_s = max(request.due_s for request in requests)
    times_s, carried_bytes = _carried(scenario, end_s)

    def carried(at_s: Floats) -> Floats:
        return np.interp(at_s, times_s, carried_bytes)

    cloud = scenario.cloud
    shared = Resources(carried, cloud.workers, cloud.at_a_time, by_iteration=cloud.by_iteration is not None)
    try:
        return hindsight(requests, shared, whole, most_s)
    except (TooLarge, RuntimeError) as error:  # a bound only stands beside runs; they are worth having without it
        say(str(error))
        return None


def percent_bound(scenario: Scenario, say: Callable[[str], None] = _unsaid) -> Bound | None:
    """The bound as documents have it; None where there is none, and `say` is told why."""
    found = bound_of(scenario, most_s=BESIDE_RUNS_S, say=say)
    return None if found is None else Bound(compliance=100 * found.met, delivered_quality=found.delivered)


def _released(scenario: Scenario) -> Iterator[Released]:
    """Every request, from when its edge has prefilled it, until its own deadline.

    Limits of the first token and of the time per token are left out, which only raises the bound.
    """
    offers = [Offer(p, tuple(scenario.modes_of(p)), scenario.context) for p in scenario.agent_profiles]
    paths = [AgentPath.of(scenario.impairments, agent) for agent in range(len(offers))]
    own = [(scenario.options[offer.profile.name], offer.prefill_ms()) for offer in offers]
    for arrival in scenario.schedule():
        offer, path = offers[arrival.agent_id], paths[arrival.agent_id]
        options, prefill_ms = own[arrival.agent_id]
        if arrival.lengths is not None:
            options, prefill_ms = offer.options(arrival.lengths), offer.prefill_ms(arrival.lengths)
        at_s = arrival.intended_s + prefill_ms / 1e3
        due_s = arrival.intended_s + scenario.agent_slos[arrival.agent_id].deadline_ms / 1e3
        yield Released(at_s, due_s, options, path.up_s + path.down_s)


def _carried(scenario: Scenario, end_s: float) -> tuple[Floats, Floats]:
    """What the uplink has carried, in bytes, by the times at which its rate changes, from 0 to `end_s`."""
    changes = scenario.uplink.channel.until(scenario.seed, end_s)
    times_s = np.array([*(change.at_s for change in changes), max(end_s, changes[-1].at_s)])
    rates = np.array([change.mbps for change in changes]) * BYTES_PER_S
    return times_s, np.concatenate(([0.0], np.cumsum(rates * np.diff(times_s))))
