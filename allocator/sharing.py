"""The one rule that shares the uplink: earliest due time first, work-conserving.

A policy that chooses by minimum rate says which mode each request gets; this module says who sends how fast. A transfer
that is due soon goes first, one that is due later can wait for it. So a new request needs only the rate that the uplink
has left on average until its own due time, and that is more than is left of it at this moment.
"""

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappush, heapreplace

from allocator.problem import ModeOption, Problem, Request, Solution, Transfer

# Transfers whose sizes differ by less have the same size: float noise must neither pass the remainder of the uplink
# from one to another nor give up a transfer that just fits.
SAME_BYTES = 1.0
# A shaper lets an agent wait for its next frame as long as its rate at that time says, whatever the rate becomes
# meanwhile: after a grant near zero for seconds. So no grant that will change is smaller; a frame at this rate takes
# 24 ms. On a fast uplink, where transfers are short, such a wait would cost more than the transfer: there a grant is at
# least this share of the uplink. (A grant is a cap: the channel's own rate still holds.)
LEAST_GRANT_MBPS = 0.5
LEAST_SHARE = 0.02
BYTES_PER_S = 125_000.0  # at 1 Mbit/s


def beside_transfers(problem: Problem) -> Problem:
    """The problem of the requests alone, on the rate that the transfers in flight leave until the first request is due.

    The bytes of a transfer are spread until then if it is due sooner. No transfer is given up for a new request. But
    the rate is never below the least grant, or an equal share if that is less: each transfer gets that in any case, so
    that something small can always be sent.
    """
    return next(iter(beside_transfers_at(problem, (problem.uplink_mbps,))))


def beside_transfers_at(problem: Problem, rates_mbps: Iterable[float]) -> Iterator[Problem]:
    """The same for each of several rates of the uplink."""
    alone = bool(problem.transfers) and bool(problem.requests)
    taken_mbps = _taken_mbps(problem) if alone else 0.0
    in_all = len(problem.transfers) + len(problem.requests)
    for uplink_mbps in rates_mbps:
        left_mbps = uplink_mbps
        if alone:
            least_mbps = min(least_grant_mbps(uplink_mbps), uplink_mbps / in_all)
            left_mbps = max(uplink_mbps - taken_mbps, least_mbps)
        yield replace(problem, uplink_mbps=left_mbps, transfers=())


def _taken_mbps(problem: Problem) -> float:
    asker, now_s = problem.requests[0], problem.now_s
    compute_ms = max(option.edge_ms + option.cloud_ms for option in asker.options)
    until_s = (problem.time_left_ms(asker) - compute_ms) / 1e3
    taken_mbps = 0.0
    for transfer in problem.transfers:
        left_s = transfer.due_s - max(now_s, transfer.starts_s)
        if left_s > 0:
            taken_mbps += transfer.bytes_left * 8e-6 / max(left_s, until_s, 1e-3)
    return taken_mbps


def least_grant_mbps(uplink_mbps: float) -> float:
    """The least grant of an agent that sends."""
    return max(LEAST_GRANT_MBPS, LEAST_SHARE * uplink_mbps)


def share_uplink(transfers: Sequence[Transfer], uplink_mbps: float, now_s: float) -> dict[int, float]:
    """Grants (Mbit/s by agent id): in order of due time every transfer gets the lowest rate that is enough.

    If not all can be in time, as many as possible are (Moore and Hodgson 1968: whenever the next in order is late, the
    largest so far is given up), and the others wait. The remainder goes to the transfer with the fewest bytes left:
    that frees its agent soonest and leaves other grants as they are. Nobody gets more than its connection can use.
    """
    grants = {transfer.agent_id: 0.0 for transfer in transfers}
    for transfer, mbps in zip(transfers, _rates(transfers, uplink_mbps, now_s), strict=True):
        grants[transfer.agent_id] += mbps
    return grants


def finish_times_s(
    transfers: Sequence[Transfer], uplink_mbps: float, now_s: float, until_id: int | None = None
) -> dict[int, float]:
    """When each transfer will have been carried, by request id, if nothing else comes and the uplink stays as it is.

    Empty for an uplink without any rate. The uplink is shared again, by the same rule, whenever a transfer begins or
    ends.

    Args:
        until_id: look no further than the end of this request's transfer.
    """
    coming = sorted(map(_Sending, transfers), key=lambda each: max(now_s, each.starts_s))[::-1]
    active: list[_Sending] = []
    by_due: list[_Sending] = []
    ends: dict[int, float] = {}
    if uplink_mbps <= 0:
        return ends
    while (active or coming) and until_id not in ends:
        if not active:
            now_s = max(now_s, coming[-1].starts_s)
        while coming and coming[-1].starts_s <= now_s:
            active.append(coming.pop())
            insort(by_due, active[-1], key=_Sending.due)
        _give_rates(active, by_due, uplink_mbps, now_s)
        step_s = _first_end_s(active, coming[-1].starts_s - now_s if coming else float("inf"))
        now_s += step_s
        ended = False
        for each in active:
            each.bytes_left -= each.mbps * BYTES_PER_S * step_s
            if each.bytes_left <= SAME_BYTES:
                ends[each.request_id] = now_s
                ended = True
        if ended:
            active = [each for each in active if each.request_id not in ends]
            by_due = [each for each in by_due if each.request_id not in ends]
    return ends


class _Sending:
    """A transfer while it is played forward."""

    __slots__ = ("bytes_left", "ceiling_mbps", "due_s", "late_s", "mbps", "request_id", "starts_s", "transfer")

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.request_id = transfer.request_id
        self.bytes_left = transfer.bytes_left
        self.due_s = transfer.due_s
        self.late_s = transfer.late_s
        self.starts_s = transfer.starts_s
        self.ceiling_mbps = transfer.ceiling_mbps
        self.mbps = 0.0

    def due(self) -> tuple[float, int]:
        return self.due_s, self.request_id


def _first_end_s(active: list[_Sending], most_s: float) -> float:
    """How long until the first of these has ended at its present rate; at most `most_s`."""
    for each in active:
        if each.mbps > 0:
            left_s = each.bytes_left / (each.mbps * BYTES_PER_S)
            if left_s < most_s:
                most_s = left_s
    return most_s


def _give_rates(active: list[_Sending], by_due: list[_Sending], uplink_mbps: float, now_s: float) -> None:
    """Set the rates of transfers that all send, by the rule of `share_uplink`.

    Nearly always all of them can be in time: then nothing has to be chosen, as `_rates` does it.
    """
    bytes_per_s, total_bytes, left_mbps = uplink_mbps * BYTES_PER_S, 0.0, uplink_mbps
    for each in by_due:
        bytes_left = each.bytes_left
        total_bytes += bytes_left
        if total_bytes > bytes_per_s * (each.late_s - now_s) + SAME_BYTES:
            _choose_rates(active, uplink_mbps, now_s)
            return
        left_s = each.due_s - now_s
        mbps = bytes_left * 8e-6 / left_s if left_s > 0 else left_mbps
        if mbps > left_mbps:
            mbps = left_mbps
        if mbps > each.ceiling_mbps:
            mbps = each.ceiling_mbps
        each.mbps = mbps
        left_mbps -= mbps
    room = active
    while left_mbps > 0 and room:
        least, least_bytes = room[0], room[0].bytes_left - SAME_BYTES
        for each in room:
            if each.bytes_left < least_bytes:
                least, least_bytes = each, each.bytes_left - SAME_BYTES
        more_mbps = min(left_mbps, least.ceiling_mbps - least.mbps)
        least.mbps += more_mbps
        left_mbps -= more_mbps
        if left_mbps > 0:
            room = [each for each in room if each is not least]


def _choose_rates(active: list[_Sending], uplink_mbps: float, now_s: float) -> None:
    transfers = []
    for each in active:
        t = each.transfer
        transfers.append(
            Transfer(t.request_id, t.agent_id, each.bytes_left, t.due_s, t.late_s, t.weight, t.starts_s, t.ceiling_mbps)
        )
    for each, mbps in zip(active, _rates(transfers, uplink_mbps, now_s), strict=True):
        each.mbps = mbps


@dataclass(frozen=True, slots=True)
class Shares:
    """The rates of one solution.

    Attributes:
        rates_mbps: by request id; of an announced request the rate that is reserved for it.
        granted_mbps: in all, to agents that send now.
    """

    rates_mbps: Mapping[int, float]
    granted_mbps: float


def shares_of(problem: Problem, solution: Solution) -> Shares:
    """Everybody's rate under a solution, all of whose requests are decided at once; transfers in flight come first."""
    if solution.grants_mbps:
        grants = solution.grants_mbps
        rates = {r.request_id: grants[r.agent_id] for r in problem.requests}
        return Shares(rates, sum(grants.values()))
    sending = sending_of(problem, solution)
    mbps = _rates(sending, problem.uplink_mbps, problem.now_s)
    rates = {transfer.request_id: rate for transfer, rate in zip(sending, mbps, strict=True)}
    for request in problem.requests:
        if request.request_id not in rates:
            option, meets = solution.choices[request.request_id]
            rates[request.request_id] = option.least_mbps(problem.time_left_ms(request)) if meets else 0.0
    return Shares(rates, sum(mbps))


def sending_of(problem: Problem, solution: Solution) -> list[Transfer]:
    """The transfers in flight, and those that begin now by this solution."""
    sending = list(problem.transfers)
    for request in problem.requests:
        option = solution.choices[request.request_id].option
        if option.wire_bytes and request.starts_s <= problem.now_s:
            sending.append(planned_transfer(request, option, problem.now_s))
    return sending


def planned_transfer(request: Request, option: ModeOption, begins_s: float) -> Transfer:
    """The transfer of a request whose work on the edge, after which it sends, begins at `begins_s`."""
    due_s, starts_s = request.due_s - option.cloud_ms / 1e3, begins_s + option.edge_ms / 1e3
    return Transfer(
        request.request_id,
        request.agent_id,
        option.wire_bytes,
        due_s,
        due_s,
        request.weight,
        starts_s,
        request.ceiling_mbps,
    )


def _rates(transfers: Sequence[Transfer], uplink_mbps: float, now_s: float) -> list[float]:
    """Mbit/s of each transfer, by the rule of `share_uplink`."""
    rates = [0.0] * len(transfers)
    left_mbps = uplink_mbps
    for index in _timely(transfers, uplink_mbps, now_s):
        rates[index] = mbps = min(transfers[index].least_mbps(now_s), left_mbps, transfers[index].ceiling_mbps)
        left_mbps -= mbps
    room = list(range(len(transfers)))
    while left_mbps > 0 and room:
        least = room[0]
        for index in room:
            if transfers[index].bytes_left < transfers[least].bytes_left - SAME_BYTES:
                least = index
        more_mbps = min(left_mbps, transfers[least].ceiling_mbps - rates[least])
        rates[least] += more_mbps
        left_mbps -= more_mbps
        room.remove(least)
    return rates


def _timely(transfers: Sequence[Transfer], uplink_mbps: float, now_s: float) -> list[int]:
    """Indices of as many transfers as can be in time, in order of due time."""
    bytes_per_s = uplink_mbps * BYTES_PER_S
    largest: list[tuple[float, int]] = []
    given_up: set[int] = set()
    total_bytes = 0.0
    in_order = sorted(range(len(transfers)), key=lambda i: (_due_in_s(transfers[i], now_s), transfers[i].request_id))
    for i in in_order:
        transfer = transfers[i]
        own_bytes = transfer.bytes_left
        possible_bytes = bytes_per_s * (transfer.late_s - max(now_s, transfer.starts_s)) + SAME_BYTES
        if total_bytes + own_bytes <= possible_bytes:
            heappush(largest, (-own_bytes, i))
            total_bytes += own_bytes
        elif largest and -largest[0][0] > own_bytes and total_bytes + own_bytes + largest[0][0] <= possible_bytes:
            minus_bytes, dropped = heapreplace(largest, (-own_bytes, i))
            total_bytes += own_bytes + minus_bytes
            given_up.add(dropped)
        else:  # the largest itself, or late even without the largest: precautions differ, and so do the latest times
            given_up.add(i)
    return [i for i in in_order if i not in given_up]


def _due_in_s(transfer: Transfer, now_s: float) -> float:
    return transfer.due_s - max(now_s, transfer.starts_s)
