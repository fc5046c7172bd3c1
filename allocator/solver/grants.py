"""Who sends how fast, once it is known who meets the deadline and how. Shared by all policies that go by need."""

from collections.abc import Sequence

from allocator.problem import ROUNDING, Assignment, ModeOption, Problem, Request, Solution, Unsaved

# What a request is told that has no need to reserve: announced, and late whatever is done.
TRICKLE_MBPS = 0.01
# Sizes that differ by less are the same, so that float noise doesn't pass what is left from one to another.
_SAME_BYTES = 1e-3


def hand_out(problem: Problem, chosen: Sequence[ModeOption | None], kept: Sequence[bool]) -> Solution:
    """Grants for the rows that meet their deadlines, then what is left of the uplink for others.

    Everybody who meets gets exactly what is needed. What is left goes to those who are late anyway, in equal parts; if
    there are none, all of it goes to whoever has least left to send now: that frees an uplink soonest, the other grants
    stay as they are from call to call, and arrivals at the cloud are staggered. Announced requests don't send yet: what
    is reserved for them counts as left.

    Args:
        chosen: for every request the option that meets its deadline, or None.
        kept: for every transfer whether it meets its deadline. Needs of these and of `chosen` must fit the uplink.
    """
    new = tuple.__new__  # a third of the time of `Assignment(...)`
    left_mbps = problem.uplink_mbps
    grants: dict[int, float] = {}
    late: list[tuple[Request, ModeOption]] = []
    late_agents: list[int] = []
    least_bytes = float("inf")
    first_agent = -1
    first: tuple[Request, ModeOption] | None = None
    for transfer, meets in zip(problem.transfers, kept, strict=True):
        agent = transfer.agent_id
        if not meets:
            late_agents.append(agent)
            continue
        need_mbps = transfer.bytes_left * 8 / (transfer.due_in_ms * 1e3)
        grants[agent] = grants.get(agent, 0.0) + need_mbps
        left_mbps -= need_mbps
        if transfer.bytes_left < least_bytes:
            least_bytes, first_agent = transfer.bytes_left - _SAME_BYTES, agent
    assignments = {}
    silent = []
    for request, option in zip(problem.requests, chosen, strict=True):
        if option is None:
            late.append((request, unsaved_option(request, problem.unsaved)))
            continue
        number, size = request.request_id, option.wire_bytes
        if not size:
            silent.append((request, option))
            continue
        time_left_ms = request.time_left_ms
        need_mbps = size * 8 / ((time_left_ms - option.edge_ms - option.cloud_ms) * 1e3)
        # On just enough the answer comes just in time, whether the cloud is waited for or not.
        assignments[number] = new(Assignment, (number, option.mode, need_mbps, time_left_ms, True))
        if request.starts_in_ms > 0:
            continue
        agent = request.agent_id
        grants[agent] = grants[agent] + need_mbps if agent in grants else need_mbps
        left_mbps -= need_mbps
        if size < least_bytes:
            least_bytes, first_agent, first = size - _SAME_BYTES, agent, (request, option)
    for request, option in silent:
        ends_ms = predicted_ms(problem, request, option, 0.0)
        assignments[request.request_id] = Assignment(request.request_id, option.mode, 0.0, ends_ms, True)
    sending = [request.agent_id for request, option in late if option.wire_bytes and request.starts_in_ms <= 0]
    late_agents += sending
    share_mbps = 0.0
    if late_agents:
        # Never quite zero, which would be no rate at all: the least is within the rounding of the uplink.
        share_mbps = max(left_mbps, problem.uplink_mbps * ROUNDING) / len(late_agents)
        for agent in late_agents:
            grants[agent] = grants.get(agent, 0.0) + share_mbps
    elif first_agent >= 0 and left_mbps > 0:
        grants[first_agent] += left_mbps
        if first:
            number = first[0].request_id
            mbps = assignments[number].grant_mbps + left_mbps
            assignments[number] = Assignment(number, first[1].mode, mbps, predicted_ms(problem, *first, mbps), True)
    for request, option in late:
        number = request.request_id
        mbps = share_mbps if request.starts_in_ms <= 0 else TRICKLE_MBPS
        mbps = mbps if option.wire_bytes else 0.0
        ends_ms = predicted_ms(problem, request, option, mbps)
        assignments[number] = Assignment(number, option.mode, mbps, ends_ms, False)
    return Solution(assignments, grants)


def predicted_ms(problem: Problem, request: Request, option: ModeOption, mbps: float) -> float:
    """Until the answer on a grant of `mbps` Mbit/s, from when the mode's own work begins; waits for a free worker."""
    latency_ms = option.latency_ms(mbps)
    if not option.cloud_ms:
        return latency_ms
    return max(latency_ms, problem.cloud_free_in_ms - request.starts_in_ms + option.cloud_ms)


def unsaved_option(request: Request, unsaved: Unsaved) -> ModeOption:
    """What becomes of a request that can't meet its deadline: see `Problem.unsaved`."""
    silent = [option for option in request.options if not option.wire_bytes]
    sending = [option for option in request.options if option.wire_bytes]
    if silent and (unsaved == "local" or not sending):
        return silent[0]
    return min(sending, key=lambda option: option.wire_bytes)
