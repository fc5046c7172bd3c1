"""The central allocator at work: serves requests as they come, and keeps the link's grants in step."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from allocator.online.dispatcher import NO_WORKER, CloudJob, Dispatcher
from allocator.online.due_shares import beside_transfers, share_by_due
from allocator.online.hedging import solve_hedged
from allocator.policies import Policy
from allocator.problem import AgentInfo, Assignment, ModeOption, Problem, Request, Solution, Transfer, Unsaved
from kvcache.modes import Mode

# What a transfer has left is known only by what it was granted. So much of it is always believed to be left, lest a
# transfer that is a little behind loses its grant.
LEAST_LEFT = 0.03
# A shaper lets an agent wait for its next frame as long as its rate at that time says, whatever the rate becomes
# meanwhile: after a grant near zero for seconds. So no grant that will change is smaller; a frame at this rate takes
# 24 ms. (A grant is a cap: the channel's own rate still holds.)
LEAST_GRANT_MBPS = 0.5
# Grants that differ by less from what they are stay as they are.
TOLERANCE = 1e-3


class Estimator(Protocol):
    """Believes something about the uplink. See `agents.estimators`."""

    def report(self, mbps: float) -> None:
        """The base station measured `mbps` over the interval that has just ended."""
        ...

    def peek(self, mbps: float) -> None:
        """The rate that begins now; only estimators that openly look ahead use it."""
        ...

    def estimate(self) -> float:
        """Mbit/s."""
        ...

    def spread(self) -> Sequence[float]:
        """Equally probable rates in Mbit/s, ascending; one if there is no doubt."""
        ...


class NoWorkerAlive(RuntimeError):
    """All cloud workers are lost, and the request can't be answered on the edge."""


class Link(Protocol):
    """Carries grants out."""

    async def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        """Give each named agent its share of the uplink from now on."""
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What an agent is told.

    Attributes:
        worker: of the cloud; -1 if nothing is sent.
        estimate_mbps: what was believed of the uplink.
        hedge: the mode that should go ahead of the assigned one, if any.
    """

    assignment: Assignment
    worker: int
    estimate_mbps: float
    hedge: Mode | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What an allocator believes and has given out at one moment.

    Attributes:
        in_flight: requests on the uplink; waiting: announced, and not decided yet (standing policies don't look).
        cloud_ms: for each worker, when it will have done what is promised to it.
        grants_mbps: of each agent, in order; 0 of those that have nothing on the uplink.
    """

    estimate_mbps: float
    in_flight: int
    waiting: int
    cloud_ms: tuple[float, ...]
    grants_mbps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """How an allocator decides, beside its policy.

    Attributes:
        margin_ms: answers are planned to be so much earlier than their deadline.
        cloud_time: whether the problem knows when cloud workers are free (two budgets) or not (one).
        unsaved: see `Problem`.
        hedge: whether small modes go ahead of caches at risk.
    """

    margin_ms: float = 0.0
    cloud_time: bool = True
    unsaved: Unsaved = "local"
    hedge: bool = False


@dataclass(slots=True)
class _Waiting:
    """A request that was announced and has not asked yet; `least` is its option that sends least."""

    request: Request
    deadline_s: float
    starts_s: float
    least: ModeOption


@dataclass(slots=True)
class _Sending:
    """A request on the uplink.

    Attributes:
        due_s: when the cloud must have its last byte.
        bytes_left: as believed at `at_s`; `credited_bytes` came off since the last report.
    """

    agent_id: int
    option: ModeOption
    weight: float
    worker: int
    deadline_s: float
    starts_s: float
    at_s: float
    bytes_left: float
    due_s: float
    credited_bytes: float = 0.0


class Allocator:
    """One allocation policy serving all agents of a run. Tells time by the running event loop."""

    def __init__(
        self,
        agents: Sequence[AgentInfo],
        policy: Policy,
        estimator: Estimator,
        dispatcher: Dispatcher,
        link: Link,
        rules: Rules | None = None,
    ) -> None:
        self._agents = tuple(agents)
        self._policy = policy
        self._by_need = policy.by_need
        self._estimator = estimator
        self._dispatcher = dispatcher
        self._link = link
        self._rules = rules or Rules()
        self._grants_mbps: dict[int, float] = {}
        self._estimate_mbps = 0.0
        self._granted: Mapping[int, float] | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._sending: dict[int, _Sending] = {}
        self._to_worker: dict[int, dict[int, _Sending]] = {}
        self._credited_bytes = 0.0
        self._credited_s = -math.inf
        self._reported_s: float | None = None
        self._regranting: asyncio.Task[None] | None = None
        self._solve_s: list[float] = []

    async def report(self, mbps: float) -> None:
        """The base station measured `mbps` over the interval that has just ended.

        Grants follow the new estimate at once, so that no request has to wait for them.
        """
        self._estimator.report(mbps)
        self._estimate_mbps = self._estimator.estimate()
        self._correct_progress(mbps)
        await self._regrant()

    async def peek(self, mbps: float) -> None:
        """The channel carries `mbps` from now on, which only estimators that look ahead use."""
        self._estimator.peek(mbps)
        self._estimate_mbps = self._estimator.estimate()
        await self._regrant()

    def announce(self, request: Request) -> None:
        """A request was released and will ask later: until then it is reckoned with."""
        if not self._policy.standing:
            starts_s = _now_s() + request.starts_in_ms / 1e3
            deadline_s = starts_s + request.time_left_ms / 1e3
            least = min(request.options, key=lambda option: option.wire_bytes)
            self._waiting[request.request_id] = _Waiting(request, deadline_s, starts_s, least)

    async def assign(self, request: Request) -> Decision:
        """Decide mode, grant and worker of a request; its agent's grant is in force on return.

        Raises:
            ValueError: the policy can't serve these modes.
            NoWorkerAlive: no cloud worker is left, and the request has no mode that needs none.
        """
        self._waiting.pop(request.request_id, None)
        now_s = _now_s()
        solution, hedges = self._solve(now_s, asker=request)
        assignment = solution.assignments[request.request_id]
        option = next(o for o in request.options if o.mode == assignment.mode)
        worker = NO_WORKER
        deadline_s = now_s + request.time_left_ms / 1e3
        if option.wire_bytes:
            prefill_ms, decode_ms = option.cloud_prefill_ms, option.cloud_ms - option.cloud_prefill_ms
            job = CloudJob(deadline_s, prefill_ms, decode_ms, option.decoder)
            worker = self._dispatcher.choose(request.request_id, job)
            if worker == NO_WORKER:
                option, assignment = _without_cloud(request)
        if option.wire_bytes:
            self._sending[request.request_id] = sending = _Sending(
                request.agent_id,
                option,
                request.weight,
                worker,
                deadline_s=deadline_s,
                starts_s=now_s + option.edge_ms / 1e3,
                at_s=now_s,
                bytes_left=option.wire_bytes,
                due_s=deadline_s - option.cloud_ms / 1e3,
            )
            self._to_worker.setdefault(worker, {})[request.request_id] = sending
            self._stagger(worker)
        await self._grant(self._shares(now_s) if self._by_need else solution.grants_mbps)
        return Decision(assignment, worker, self._estimate_mbps, hedges.get(request.request_id))

    def received(self, request_id: int) -> None:
        """The cloud needs no more of the request: its share of the uplink is free."""
        self._dispatcher.arrived(request_id)
        self._leave_uplink(request_id)

    def finish(self, request_id: int, gave_up: bool = False) -> None:
        """The request has ended; ids that were never assigned a worker are ignored.

        Args:
            gave_up: its agent stopped waiting: a worker that has the request serves it nevertheless.
        """
        self._waiting.pop(request_id, None)
        self._dispatcher.done(request_id, gave_up)
        self._leave_uplink(request_id)

    def worker_lost(self, worker: int) -> None:
        """The worker is dead or frozen: it gets no more requests.

        Its requests in flight keep their share of the uplink until their agents, which lose the connection or time
        out, finish them.
        """
        self._dispatcher.lost(worker)

    def worker_restored(self, worker: int) -> None:
        """The worker serves again, with an empty queue."""
        self._dispatcher.restored(worker)

    def solve_times_ms(self) -> list[float]:
        """How long each solve took, without applying the grants."""
        return [s * 1e3 for s in self._solve_s]

    def snapshot(self) -> Snapshot:
        """How things stand."""
        sending = {one.agent_id for one in self._sending.values()}
        return Snapshot(
            self._estimate_mbps,
            len(self._sending),
            len(self._waiting),
            tuple(self._dispatcher.free_in_ms()),
            tuple(
                self._grants_mbps.get(agent.agent_id, 0.0) if agent.agent_id in sending else 0.0
                for agent in self._agents
            ),
        )

    async def switch(self, policy: Policy) -> None:
        """Decide by another policy from now on; what is on the uplink stays there."""
        self._policy = policy
        self._by_need = policy.by_need
        self._waiting.clear()
        self._granted = None
        await self._regrant()

    def _leave_uplink(self, request_id: int) -> None:
        sending = self._sending.pop(request_id, None)
        if sending is None:
            return
        del self._to_worker[sending.worker][request_id]
        self._stagger(sending.worker)
        if self._policy.standing or not self._sending:
            return
        if self._regranting is None:  # one for all that leave at this moment
            self._regranting = asyncio.create_task(self._regrant_after_departures())

    async def _regrant_after_departures(self) -> None:
        self._regranting = None
        await self._regrant()

    async def _regrant(self) -> None:
        """Fit the grants to what is believed and in flight now; no request is decided."""
        if self._by_need:
            await self._grant(self._shares(_now_s()))
        elif self._policy.standing or self._sending:
            solution, _ = self._solve(_now_s())
            await self._grant(solution.grants_mbps)

    async def _grant(self, grants_mbps: Mapping[int, float]) -> None:
        """Touch the grants that change, no others."""
        if grants_mbps is self._granted:
            return
        self._granted = grants_mbps
        least_mbps = 0.0 if self._policy.standing else LEAST_GRANT_MBPS
        known = self._grants_mbps
        changed = {}
        for agent_id, asked_mbps in grants_mbps.items():
            mbps = max(asked_mbps, least_mbps)
            if abs(mbps - known.get(agent_id, -1.0)) > TOLERANCE * mbps:
                changed[agent_id] = mbps
        if changed:
            known |= changed
            await self._link.set_grants(changed)

    def _solve(self, now_s: float, asker: Request | None = None) -> tuple[Solution, dict[int, Mode]]:
        problem = self._problem(now_s, asker)
        rates_mbps = self._estimator.spread() if self._rules.hedge else ()
        began_s = time.perf_counter()
        if len(rates_mbps) > 1 and asker is not None:
            solution, hedges = solve_hedged(self._policy, problem, rates_mbps)
        else:
            solution, hedges = self._policy.solve(beside_transfers(problem) if self._by_need else problem), {}
        self._solve_s.append(time.perf_counter() - began_s)
        return solution, hedges

    def _problem(self, now_s: float, asker: Request | None) -> Problem:
        requests = [] if asker is None else [self._planned(asker, asker.time_left_ms, 0.0)]
        transfers: list[Transfer] = []
        if not self._policy.standing:
            if asker is not None:
                busy = {sending.agent_id for sending in self._sending.values()} | {asker.agent_id}
                requests += [self._as_of(now_s, waiting, busy) for waiting in self._waiting.values()]
            transfers = self._transfers(now_s)
        return Problem(
            self._estimate_mbps,
            self._agents,
            tuple(requests),
            tuple(transfers),
            self._dispatcher.free_in_ms() if self._rules.cloud_time and not self._policy.standing else None,
            self._rules.unsaved,
        )

    def _transfers(self, now_s: float) -> list[Transfer]:
        self._credit_progress(now_s)
        margin_ms = self._rules.margin_ms
        return [
            Transfer(
                request_id,
                sending.agent_id,
                sending.bytes_left,
                (sending.due_s - (now_s if now_s > sending.starts_s else sending.starts_s)) * 1e3 - margin_ms,
                sending.weight,
            )
            for request_id, sending in self._sending.items()
        ]

    def _shares(self, now_s: float) -> Mapping[int, float]:
        """The uplink shared among those who send now, for policies that choose by need."""
        transfers = self._transfers(now_s)
        behind: dict[int, _Waiting] = {}
        for waiting in self._waiting.values():
            behind.setdefault(waiting.request.agent_id, waiting)
        if behind:
            transfers = [
                t._replace(due_in_ms=self._due_before(t, behind[t.agent_id], now_s)) if t.agent_id in behind else t
                for t in transfers
            ]
        # What a hedged plan counted on may be more than the estimate: grants must not take that back.
        uplink_mbps = max(self._estimator.spread()) if self._rules.hedge else self._estimate_mbps
        last_ms = [(s.deadline_s - max(now_s, s.starts_s)) * 1e3 - s.option.cloud_ms for s in self._sending.values()]
        return share_by_due(transfers, last_ms, uplink_mbps)

    def _due_before(self, transfer: Transfer, behind: _Waiting, now_s: float) -> float:
        """When a transfer must be through so that the next one of its agent has its part of the time, by size."""
        least = behind.least
        left_ms = (behind.deadline_s - now_s) * 1e3 - self._rules.margin_ms - least.edge_ms - least.cloud_ms
        part = transfer.bytes_left / (transfer.bytes_left + least.wire_bytes)
        return min(transfer.due_in_ms, left_ms * part) if left_ms > 0 else transfer.due_in_ms

    def _as_of(self, now_s: float, waiting: _Waiting, busy: set[int]) -> Request:
        """An announced request as it looks now; it may be late in asking.

        If its agent is sending already, it waits for that: what it needs can go to the agent at once, so that the one
        before it is done in time for both.
        """
        starts_s = now_s if waiting.request.agent_id in busy else max(now_s + 1e-6, waiting.starts_s)
        return self._planned(waiting.request, (waiting.deadline_s - starts_s) * 1e3, (starts_s - now_s) * 1e3)

    def _planned(self, r: Request, left_ms: float, starts_in_ms: float) -> Request:
        """The request with the margin taken off."""
        left_ms -= self._rules.margin_ms
        return Request(r.request_id, r.agent_id, left_ms, r.options, r.weight, starts_in_ms)

    def _stagger(self, worker: int) -> None:
        """Set when the cloud must have the last byte of each transfer to a worker.

        With cloud time in the problem, requests that share a worker must come one after the other: scheduled backwards
        from the latest deadline, each is due when its own service must begin, less the longest service of the others,
        which may just have begun when it comes.
        """
        if not self._rules.cloud_time or self._policy.standing:
            return
        latest_s, longest_s = math.inf, 0.0
        later_first = sorted(self._to_worker[worker].items(), key=lambda item: (-item[1].deadline_s, -item[0]))
        for _, sending in later_first:
            service_s = sending.option.cloud_ms / 1e3
            latest_s = min(sending.deadline_s, latest_s) - service_s
            sending.due_s = latest_s - longest_s
            longest_s = max(service_s, longest_s)

    def _credit_progress(self, now_s: float) -> None:
        """Take off what the grants have carried since it was last looked at."""
        if now_s == self._credited_s:
            return
        self._credited_s = now_s
        for sending in self._sending.values():
            sent_s = now_s - max(sending.at_s, sending.starts_s)
            if sent_s > 0:
                carried_bytes = self._grants_mbps.get(sending.agent_id, 0.0) * 1e6 / 8 * sent_s
                possible_bytes = sending.bytes_left - LEAST_LEFT * sending.option.wire_bytes
                carried_bytes = min(carried_bytes, max(0.0, possible_bytes))
                sending.bytes_left -= carried_bytes
                sending.credited_bytes += carried_bytes
                self._credited_bytes += carried_bytes
            sending.at_s = now_s

    def _correct_progress(self, measured_mbps: float) -> None:
        """The uplink carried less than was granted: put back what can't have been sent, from all alike."""
        now_s = _now_s()
        self._credit_progress(now_s)
        if self._reported_s is not None and self._credited_bytes > 0:
            possible_bytes = measured_mbps * 1e6 / 8 * (now_s - self._reported_s)
            excess = max(0.0, 1 - possible_bytes / self._credited_bytes)
            for sending in self._sending.values():
                sending.bytes_left += excess * sending.credited_bytes
        for sending in self._sending.values():
            sending.credited_bytes = 0.0
        self._credited_bytes = 0.0
        self._reported_s = now_s


def _without_cloud(request: Request) -> tuple[ModeOption, Assignment]:
    """The fastest option that needs no worker. Raises NoWorkerAlive if there is none."""
    local = min((o for o in request.options if not o.wire_bytes), key=lambda o: o.edge_ms, default=None)
    if local is None:
        raise NoWorkerAlive("no cloud worker is alive, and no mode is answered on the edge")
    meets = local.edge_ms <= request.time_left_ms
    return local, Assignment(request.request_id, local.mode, 0.0, local.edge_ms, meets)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
