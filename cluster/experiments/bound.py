"""The upper bound on what any allocator can have of a scenario: see `allocator.bench.hindsight`."""

from collections.abc import Iterator

import numpy as np

from agents.offer import Offer
from allocator.bench.hindsight import Hindsight, Released, Resources, TooLarge, hindsight
from allocator.solver.arrays import Floats
from cluster.scenario.schema import Scenario
from cluster.simulated.tcp_model import AgentPath
from reports.schema import Bound

BYTES_PER_S = 125_000.0  # at 1 Mbit/s


def bound_of(scenario: Scenario, whole: bool = False) -> Hindsight | None:
    """Upper bounds on simulated turns of a scenario, whatever the allocator.

    None where something is unknown beforehand (events) or there are too many requests.

    Args:
        whole: see `hindsight`.
    """
    if scenario.events:
        return None
    requests = list(_released(scenario))
    end_s = max(request.due_s for request in requests)
    times_s, carried_bytes = _carried(scenario, end_s)

    def carried(at_s: Floats) -> Floats:
        return np.interp(at_s, times_s, carried_bytes)

    cloud = scenario.cloud
    shared = Resources(carried, cloud.workers, cloud.at_a_time, by_iteration=cloud.by_iteration is not None)
    try:
        return hindsight(requests, shared, whole)
    except TooLarge:
        return None


def percent_bound(scenario: Scenario) -> Bound | None:
    """The bound as documents have it; None where there is none."""
    found = bound_of(scenario)
    return None if found is None else Bound(compliance=100 * found.met, delivered_quality=found.delivered)


def _released(scenario: Scenario) -> Iterator[Released]:
    """Every request, from when its edge has prefilled it, until its answer must leave the cloud."""
    offers = [Offer(p, tuple(scenario.modes_of(p)), scenario.context) for p in scenario.agent_profiles]
    paths = [AgentPath.of(scenario.impairments, agent) for agent in range(len(offers))]
    own = [(scenario.options[offer.profile.name], offer.prefill_ms()) for offer in offers]
    for arrival in scenario.schedule():
        offer, path = offers[arrival.agent_id], paths[arrival.agent_id]
        options, prefill_ms = own[arrival.agent_id]
        if arrival.lengths is not None:
            options, prefill_ms = offer.options(arrival.lengths), offer.prefill_ms(arrival.lengths)
        at_s = arrival.intended_s + prefill_ms / 1e3
        due_s = arrival.intended_s + scenario.deadline_ms / 1e3
        yield Released(at_s, due_s, options, path.up_s + path.down_s)


def _carried(scenario: Scenario, end_s: float) -> tuple[Floats, Floats]:
    """What the uplink has carried, in bytes, by the times at which its rate changes, from 0 to `end_s`."""
    changes = scenario.uplink.channel.until(scenario.seed, end_s)
    times_s = np.array([*(change.at_s for change in changes), max(end_s, changes[-1].at_s)])
    rates = np.array([change.mbps for change in changes]) * BYTES_PER_S
    return times_s, np.concatenate(([0.0], np.cumsum(rates * np.diff(times_s))))
