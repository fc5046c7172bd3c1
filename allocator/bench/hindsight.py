"""What could have been had of a whole run by somebody who knew all arrivals and the channel: an upper bound.

A fluid linear program over time. Every request divides itself among its options; their bytes flow over the uplink and
their work through the cloud's workers within the request's own time, divisible and preemptive, on rates that are known:

    maximize    sum_j sum_o value[j, o] * x[j, o]
    subject to  sum_o x[j, o] <= 1                                 for every request j
                sum_o bytes[j, o] * x[j, o] <= sum_k sent[j, k]    sent within the request's time, k: slots of time
                sum_o work[j, o] * x[j, o]  <= sum_k done[j, k]
                sum_j sent[j, k] <= what the uplink carries in slot k
                sum_j done[j, k] <= what the workers can do in slot k

Real decisions are whole, know no future, and begin cloud work only when the bytes are there: each is a special case, so
no allocator can have more. Agents' own queues, retransmissions and what a safety net sends in vain are left out, which
only raises the bound. With `whole`, x is 0 or 1 (a mixed-integer program): what is left of the gap is the relaxation's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array

from allocator.problem import ModeOption
from allocator.solver.arrays import Floats, Ints

SLOTS = 16  # of a request's time, if there is room for so many
MAX_VARIABLES = 150_000  # beyond, slots are longer, and then there is no bound
MAX_S = 60.0  # for each of two programs
LEAST_SLOTS = 2
ROUNDING = 1e-6  # share of the bound that HiGHS's tolerances stay below
_STATUS_TIME = 1  # scipy's, for a limit reached
_LEAST = 1e-12  # divisor instead of 0


class TooLarge(ValueError):
    """The run has more requests than a bound can be computed for, in number or in time; the message says so."""


@dataclass(frozen=True, slots=True)
class Released:
    """A request as hindsight knows it.

    Attributes:
        at_s: when it can begin at the earliest: its release, and what precedes any mode's own work.
        due_s: its deadline.
        away_s: what the path takes, there and back, of what is sent.
    """

    at_s: float
    due_s: float
    options: tuple[ModeOption, ...]
    away_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Hindsight:
    """Upper bounds, each by itself: `met` is the share of requests in time, `delivered` the mean quality in time."""

    met: float
    delivered: float


@dataclass(frozen=True, slots=True)
class Resources:
    """What all requests share.

    Attributes:
        carried_bytes: what the uplink has carried since time 0, at times in s (vectorized).
        workers: of the cloud.
        batch: requests that a worker decodes together: of a decode, each has to pay this part at least.
        by_iteration: whether that holds of prefills as well, because requests join a batch at any step.
    """

    carried_bytes: Callable[[Floats], Floats]
    workers: int
    batch: int = 1
    by_iteration: bool = False

    def work_s(self, option: ModeOption) -> float:
        """Worker time that an option takes at least."""
        if self.by_iteration:
            return option.cloud_ms / self.batch / 1e3
        decode_ms = option.cloud_ms - option.cloud_prefill_ms
        return (option.cloud_prefill_ms + decode_ms / self.batch) / 1e3


def hindsight(requests: Sequence[Released], shared: Resources, whole: bool = False, most_s: float = MAX_S) -> Hindsight:
    """Upper bounds on what any allocator can have of these requests.

    Args:
        whole: each request has one option or none; takes exponential time, so for small runs only.
        most_s: how long either of the two programs may take.

    Raises:
        TooLarge: too many requests, or it would take too long.
        RuntimeError: HiGHS found no optimum.
    """
    if not requests:
        return Hindsight(0.0, 0.0)
    program = _Program(requests, shared)
    met = program.best(np.ones(len(program.quality)), whole, most_s)
    delivered = program.best(program.quality, whole, most_s)
    return Hindsight(min(1.0, met / len(requests) * (1 + ROUNDING)), delivered / len(requests) * (1 + ROUNDING))


class _Options(NamedTuple):
    """Every option that could be in time if its request were alone: (options,) each."""

    owner: Ints
    bytes: Floats
    work_s: Floats
    quality: Floats
    begins_s: Floats  # of what it sends, or of its work
    sent_by_s: Floats
    done_by_s: Floats

    @staticmethod
    def of(requests: Sequence[Released], shared: Resources) -> "_Options":
        rows = [
            (
                number,
                option.wire_bytes,
                shared.work_s(option),
                option.quality,
                request.at_s + option.edge_ms / 1e3,
                (due_s := request.due_s - request.away_s * bool(option.wire_bytes)) - option.cloud_ms / 1e3,
                due_s,
            )
            for number, request in enumerate(requests)
            for option in request.options
        ]
        columns = np.array(rows).reshape(-1, 7).T
        begins_s, sent_by_s = columns[4], columns[5]
        usable = begins_s <= sent_by_s
        could = shared.carried_bytes(np.maximum(sent_by_s, begins_s)) - shared.carried_bytes(begins_s)
        usable &= columns[1] <= could * (1 + ROUNDING)
        kept = columns[:, usable]
        return _Options(kept[0].astype(np.intp), *kept[1:])


class _Flow(NamedTuple):
    """One resource: which request may use how much of it in which slot.

    Attributes:
        request, slot, most: (variables,) `most` is what the request can use in the slot, within its own time.
        capacity: (slots,).
        needs: (options,) what each option uses.
    """

    request: Ints
    slot: Ints
    most: Floats
    capacity: Floats
    needs: Floats


def _flow(
    options: _Options, needs: Floats, ends_s: Floats, grid_s: Floats, level: Callable[[Floats], Floats], width: float
) -> _Flow | None:
    """The flow of what options need, each from its begin to `ends_s`; None if there is enough for everybody.

    Args:
        grid_s: borders of the slots.
        level: what the resource has had for one request to use, by time.
        width: how many requests can use that at once.
    """
    users = needs > 0
    if not users.any():
        return None
    owners = np.unique(options.owner[users])
    begin_s, end_s, greatest = (np.zeros(owners[-1] + 1) for _ in range(3))
    begin_s[:] = np.inf
    np.minimum.at(begin_s, options.owner[users], options.begins_s[users])
    np.maximum.at(end_s, options.owner[users], ends_s[users])
    np.maximum.at(greatest, options.owner[users], needs[users])
    first = np.searchsorted(grid_s, begin_s[owners], side="right") - 1
    count = np.searchsorted(grid_s, end_s[owners], side="left") - first
    request = np.repeat(owners, count)
    slot = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    until = level(np.minimum(grid_s[slot + 1], end_s[request]))
    most = np.maximum(0.0, until - level(np.maximum(grid_s[slot], begin_s[request])))
    capacity = width * np.diff(level(grid_s))
    # If every request can spread its greatest need over its time, nobody takes from anybody.
    share = most / np.maximum(np.bincount(request, most), _LEAST)[request]
    if (np.bincount(slot, share * greatest[request], len(capacity)) <= capacity).all():
        return None
    return _Flow(request, slot, most, capacity, needs)


class _Program:
    """The linear program, without an objective; its first variables are the options'."""

    def __init__(self, requests: Sequence[Released], shared: Resources) -> None:
        options = self._options = _Options.of(requests, shared)
        self.quality = options.quality
        if not len(options.owner):
            return
        grid_s = _grid(requests)
        carried, workers = shared.carried_bytes, shared.workers
        flows = (
            _flow(options, options.bytes, options.sent_by_s, grid_s, carried, 1.0),
            _flow(options, options.work_s, options.done_by_s, grid_s, lambda at_s: at_s, workers),
        )
        self._constrain([flow for flow in flows if flow is not None], len(requests))

    def _constrain(self, flows: Sequence[_Flow], requests: int) -> None:
        """Matrix, right-hand side and upper bounds: one option a request, flows by request, flows by slot."""
        options = len(self.quality)
        rows, columns, entries = [self._options.owner], [np.arange(options)], [np.ones(options)]
        limits, most = [np.ones(requests)], [np.ones(options)]
        row, column = requests, options
        for flow in flows:
            unit = flow.needs.max()
            variables = np.arange(column, column + len(flow.most))
            users = np.flatnonzero(flow.needs > 0)
            rows += [row + self._options.owner[users], row + flow.request, row + requests + flow.slot]
            columns += [users, variables, variables]
            ones = np.ones(len(variables))
            entries += [flow.needs[users] / unit, -ones, ones]
            limits += [np.zeros(requests), flow.capacity / unit]
            most.append(flow.most / unit)
            row += requests + len(flow.capacity)
            column += len(variables)
        where = (np.concatenate(rows), np.concatenate(columns))
        self._matrix = coo_array((np.concatenate(entries), where), shape=(row, column)).tocsr()
        self._limits, self._most = np.concatenate(limits), np.concatenate(most)

    def best(self, value: Floats, whole: bool, most_s: float) -> float:
        """The most of `value` (options,). Raises TooLarge, or RuntimeError if HiGHS found none."""
        if not len(value):
            return 0.0
        objective = np.zeros(len(self._most))
        objective[: len(value)] = -value
        bounds = Bounds(0, self._most)
        if whole:
            kinds = np.zeros(len(objective))
            kinds[: len(value)] = 1
            limits = LinearConstraint(self._matrix, ub=self._limits)
            found = milp(
                objective,
                integrality=kinds,
                bounds=bounds,
                constraints=limits,
                options={"mip_rel_gap": 0.0, "time_limit": most_s},
            )
        else:
            pairs = np.column_stack((np.zeros(len(objective)), self._most))
            found = linprog(
                objective,
                A_ub=self._matrix,
                b_ub=self._limits,
                bounds=pairs,
                method="highs",
                options={"time_limit": most_s},
            )
        if found.status == _STATUS_TIME:
            raise TooLarge(f"no bound: it takes more than {most_s:g} s")
        if found.x is None:
            raise RuntimeError(f"no bound: {found.message}")
        return float(-found.fun)


def _grid(requests: Sequence[Released]) -> Floats:
    """Borders of slots that cover all requests' times. Raises TooLarge if even the longest slots are too many."""
    begin_s, end_s = min(r.at_s for r in requests), max(r.due_s for r in requests)
    in_all_s = sum(max(0.0, r.due_s - r.at_s) for r in requests)
    mean_s = max(in_all_s / len(requests), _LEAST)
    slots = min(SLOTS, MAX_VARIABLES // (2 * len(requests)) - 2)
    if slots < LEAST_SLOTS:
        most = MAX_VARIABLES // (2 * (LEAST_SLOTS + 2))
        raise TooLarge(f"no bound for {len(requests):,} requests; it is computed for {most:,} at most")
    slots_in_all = min(MAX_VARIABLES, int((end_s - begin_s) / mean_s * slots) + 2)
    return np.linspace(begin_s, max(end_s, begin_s + _LEAST), slots_in_all + 1)
