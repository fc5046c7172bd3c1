"""The uplink over time, where requests come at any moment: what is left for a new one, and who sends how fast now.

A transfer that is due soon goes first; one that is due later can wait for it. So a new request needs only what the
uplink has left on average until its own due time, and that is more than what is left of it at this moment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import heappush, heapreplace

from allocator.problem import Problem, Transfer

# Sizes that differ by less are the same, so that float noise neither passes what is left from one to another nor gives
# up a transfer that just fits.
SAME_BYTES = 1.0
NOTHING_MBPS = 1e-6


def beside_transfers(problem: Problem) -> Problem:
    """The problem of the requests alone, on what the transfers in flight leave of the uplink until the first is due.

    What a transfer takes is spread until then if it is due sooner. Nobody in flight is given up for a new request.
    """
    if not problem.transfers or not problem.requests:
        return replace(problem, transfers=())
    asker = problem.requests[0]
    until_ms = asker.time_left_ms - max(option.edge_ms + option.cloud_ms for option in asker.options)
    taken_mbps = sum(
        t.bytes_left * 8e-3 / max(t.due_in_ms, until_ms, 1.0) for t in problem.transfers if t.due_in_ms > 0
    )
    return replace(problem, uplink_mbps=max(problem.uplink_mbps - taken_mbps, NOTHING_MBPS), transfers=())


def share_by_due(transfers: Sequence[Transfer], last_ms: Sequence[float], uplink_mbps: float) -> Mapping[int, float]:
    """Grants (Mbit/s by agent id) for those in flight: in order of due time everybody gets what is just enough.

    If not all can be in time, as many as possible are (Moore and Hodgson 1968: whenever the next in order is late, the
    largest so far is given up), and the others wait. What nobody needs goes to the transfer with the least left, which
    frees its agent soonest and leaves other grants as they are.

    Args:
        last_ms: for each transfer when it is certainly late; its due time may be earlier, for precaution.
    """
    grants = {transfer.agent_id: 0.0 for transfer in transfers}
    left_mbps = uplink_mbps
    for transfer in _timely(transfers, last_ms, uplink_mbps):
        mbps = min(transfer.least_mbps, left_mbps)
        grants[transfer.agent_id] += mbps
        left_mbps -= mbps
    if left_mbps > 0 and transfers:
        least = transfers[0]
        for transfer in transfers:
            if transfer.bytes_left < least.bytes_left - SAME_BYTES:
                least = transfer
        grants[least.agent_id] += left_mbps
    return grants


def _timely(transfers: Sequence[Transfer], last_ms: Sequence[float], uplink_mbps: float) -> list[Transfer]:
    """As many transfers as can be in time, in order of due time."""
    bytes_per_ms = uplink_mbps * 125.0
    largest: list[tuple[float, int]] = []
    given_up: set[int] = set()
    total_bytes = 0.0
    in_order = sorted(range(len(transfers)), key=lambda i: (transfers[i].due_in_ms, transfers[i].request_id))
    for i in in_order:
        own_bytes, possible_bytes = transfers[i].bytes_left, bytes_per_ms * last_ms[i] + SAME_BYTES
        if total_bytes + own_bytes <= possible_bytes:
            heappush(largest, (-own_bytes, i))
            total_bytes += own_bytes
        elif largest and -largest[0][0] > own_bytes and total_bytes + own_bytes + largest[0][0] <= possible_bytes:
            minus_bytes, dropped = heapreplace(largest, (-own_bytes, i))
            total_bytes += own_bytes + minus_bytes
            given_up.add(dropped)
        else:  # the largest itself, or late even without the largest: precautions differ, and so does what is last
            given_up.add(i)
    return [transfers[i] for i in in_order if i not in given_up]
