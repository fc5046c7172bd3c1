"""The transfers in flight: how far each is, by the grants that were in force, and when each must be through."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from allocator.problem import ModeOption, Request, Transfer
from allocator.sharing import BYTES_PER_S

# The progress of a transfer is known only by its grants. This share of it is always believed to be left, so that a
# transfer that is a little behind keeps its grant.
LEAST_LEFT = 0.03


@dataclass(slots=True, eq=False, kw_only=True)
class InFlight(Transfer):
    """A transfer as the allocator keeps it; `bytes_left` is as believed at `at_s`.

    Attributes:
        planned_s: the request's `due_s`, for its answer; `due_s` is for the last byte at the cloud.
        credited_bytes: taken off `bytes_left` since the last report.
        granted_bytes: carried if every grant had been used in full.
    """

    option: ModeOption
    worker: int
    planned_s: float
    at_s: float
    credited_bytes: float = 0.0
    granted_bytes: float = 0.0


class Transfers:
    """All transfers in flight, by request id.

    Args:
        staggered: whether transfers to one worker must come one after the other, because the problem models cloud time.
    """

    def __init__(self, staggered: bool) -> None:
        self.staggered = staggered
        self.mean_grants_mbps: dict[int, float] = {}
        """Of each transfer that has ended: its mean grant while it was on the wire."""
        self._flying: dict[int, InFlight] = {}
        self._by_worker: dict[int, dict[int, InFlight]] = {}
        self._credited_bytes = 0.0
        self._credited_s = -math.inf
        self._reported_s: float | None = None

    def __len__(self) -> int:
        return len(self._flying)

    def __iter__(self) -> Iterator[InFlight]:
        return iter(self._flying.values())

    def add(self, request: Request, option: ModeOption, worker: int, now_s: float) -> None:
        """A request begins to be sent, once its option's work on the edge is done."""
        cloud_s = option.cloud_ms / 1e3
        self._flying[request.request_id] = transfer = InFlight(
            request.request_id,
            request.agent_id,
            option.wire_bytes,
            due_s=request.due_s - cloud_s,
            late_s=request.deadline_s - cloud_s,
            weight=request.weight,
            starts_s=now_s + option.edge_ms / 1e3,
            ceiling_mbps=request.ceiling_mbps,
            option=option,
            worker=worker,
            planned_s=request.due_s,
            at_s=now_s,
        )
        self._by_worker.setdefault(worker, {})[request.request_id] = transfer
        self._stagger(worker)

    def end(self, request_id: int, now_s: float, grants_mbps: Mapping[int, float]) -> bool:
        """A transfer has ended, however; whether there was one of that id."""
        if request_id not in self._flying:
            return False
        transfer = self._flying.pop(request_id)
        self._carry(transfer, now_s, grants_mbps)
        if now_s > transfer.starts_s:
            self.mean_grants_mbps[request_id] = transfer.granted_bytes / BYTES_PER_S / (now_s - transfer.starts_s)
        del self._by_worker[transfer.worker][request_id]
        self._stagger(transfer.worker)
        return True

    def advance(self, now_s: float, grants_mbps: Mapping[int, float]) -> None:
        """Take off the bytes that these grants, in force since the last call, have carried."""
        if now_s == self._credited_s:
            return
        self._credited_s = now_s
        for transfer in self._flying.values():
            self._carry(transfer, now_s, grants_mbps)

    def _carry(self, transfer: InFlight, now_s: float, grants_mbps: Mapping[int, float]) -> None:
        sent_s = now_s - max(transfer.at_s, transfer.starts_s)
        if sent_s > 0:
            granted_bytes = grants_mbps.get(transfer.agent_id, 0.0) * BYTES_PER_S * sent_s
            transfer.granted_bytes += granted_bytes
            possible_bytes = transfer.bytes_left - LEAST_LEFT * transfer.option.wire_bytes
            carried_bytes = min(granted_bytes, max(0.0, possible_bytes))
            transfer.bytes_left -= carried_bytes
            transfer.credited_bytes += carried_bytes
            self._credited_bytes += carried_bytes
        transfer.at_s = now_s

    def correct(self, measured_mbps: float, now_s: float) -> None:
        """Since the last report the uplink may have carried less than was granted: put the excess back, from all alike.

        Call `advance` first.
        """
        if self._reported_s is not None and self._credited_bytes > 0:
            possible_bytes = measured_mbps * BYTES_PER_S * (now_s - self._reported_s)
            excess = max(0.0, 1 - possible_bytes / self._credited_bytes)
            for transfer in self._flying.values():
                transfer.bytes_left += excess * transfer.credited_bytes
        for transfer in self._flying.values():
            transfer.credited_bytes = 0.0
        self._credited_bytes = 0.0
        self._reported_s = now_s

    def before(self, announced: Sequence[Request], now_s: float) -> list[Transfer]:
        """The transfers, each due early enough for the announced request of its own agent that waits behind it.

        The time until that request's answer is due is divided by size between the two.
        """
        behind: dict[int, Request] = {}
        for request in announced:
            behind.setdefault(request.agent_id, request)
        return [
            _due_before(transfer, behind[transfer.agent_id], now_s) if transfer.agent_id in behind else transfer
            for transfer in self._flying.values()
        ]

    def _stagger(self, worker: int) -> None:
        """Set the due times of all transfers to a worker.

        Requests that share a worker must come one after the other: scheduled backwards from the latest due time, each
        is due when its own service must begin, less the longest service of the others, which may just have begun when
        it comes (the blocking term of non-preemptive EDF).
        """
        if not self.staggered:
            return
        latest_s, longest_s = math.inf, 0.0
        for transfer in sorted(self._by_worker[worker].values(), key=lambda t: (-t.planned_s, -t.request_id)):
            service_s, work_s = transfer.option.cloud_ms / 1e3, transfer.option.work_ms / 1e3
            latest_s = min(transfer.planned_s, latest_s - work_s + service_s) - service_s
            transfer.due_s = latest_s - longest_s
            longest_s = max(work_s, longest_s)


def _due_before(transfer: Transfer, behind: Request, now_s: float) -> Transfer:
    least = min(behind.options, key=lambda option: option.wire_bytes)
    left_s = behind.due_s - now_s - (least.edge_ms + least.cloud_ms) / 1e3
    if left_s <= 0:
        return transfer
    part = transfer.bytes_left / (transfer.bytes_left + least.wire_bytes)
    due_s = max(now_s, transfer.starts_s) + left_s * part
    if due_s >= transfer.due_s:
        return transfer
    plain = Transfer(transfer.request_id, transfer.agent_id, transfer.bytes_left, due_s, transfer.late_s)
    return replace(plain, weight=transfer.weight, starts_s=transfer.starts_s, ceiling_mbps=transfer.ceiling_mbps)
