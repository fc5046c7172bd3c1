"""The central allocator at work: serves requests as they come, and keeps the link's grants in step."""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from allocator.online.hedging import solve_hedged
from allocator.online.interfaces import NO_WORKER, CloudJob, Dispatcher, Estimator, Link, NoWorkerAlive
from allocator.online.standing import Standing
from allocator.online.transfers import Transfers
from allocator.policies import Policy
from allocator.policies.base import decided
from allocator.problem import (
    AgentInfo,
    Gap,
    ModeOption,
    OnInfeasible,
    Plan,
    Problem,
    Request,
    Solution,
    Transfer,
    local_option,
    smallest_option,
)
from allocator.sharing import beside_transfers, finish_times_s, least_grant_mbps, planned_transfer, share_uplink

# A grant that would change by a smaller share of it stays as it is.
TOLERANCE = 1e-3
# An announced request that is late in asking is planned to begin this much later than now: it doesn't send yet.
SOON_S = 1e-6
SHED = "shed: it can't be in time, even on all that is left of the uplink and an idle worker"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of an allocator at one moment.

    Attributes:
        estimate_mbps: the rate that it plans with; of some estimators the mean times their `safety`.
        in_flight: requests on the uplink; waiting: announced and not decided yet (static shares don't depend on these).
        cloud_ms: for each worker, the time until it has done the work promised to it.
        grants_mbps: of each agent, in order; 0 for agents without a transfer.
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
        cloud_time: whether the problem knows when cloud workers are free (two budgets) or not (one).
        on_infeasible: see `Problem`.
        hedge: whether it reckons with all rates that the uplink may have, so that small modes go ahead of caches;
            None: as the policy does by itself.
        report_s: how often the uplink's rate is reported.
        shed: whether a request that can't be in time is rejected; None: as the policy does by itself.
    """

    cloud_time: bool = True
    on_infeasible: OnInfeasible = "local"
    hedge: bool | None = None
    report_s: float = 1.0
    shed: bool | None = None


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
        self._ceilings_mbps = {a.agent_id: a.ceiling_mbps for a in agents if math.isfinite(a.ceiling_mbps)}
        self._estimator = estimator
        self._dispatcher = dispatcher
        self._link = link
        self._rules = rules or Rules()
        self._transfers = Transfers(staggered=False)
        self._announced: dict[int, Request] = {}
        self._grants_mbps: dict[int, float] = {}
        self._estimate_mbps = 0.0
        self._regranting: asyncio.Task[None] | None = None
        self._solve_s: list[float] = []
        self._gaps: list[Gap] = []
        self._take(policy)

    def _take(self, policy: Policy) -> None:
        self._policy = policy
        self._sheds = decided(policy, "sheds", self._rules.shed)
        self._hedges = decided(policy, "hedges", self._rules.hedge)
        self._transfers.staggered = self._rules.cloud_time and not policy.static_shares
        self._static_for_mbps: float | None = None  # the estimate by which static shares were granted

    async def report(self, mbps: float) -> None:
        """The base station measured `mbps` over the interval that has just ended.

        Grants follow the new estimate at once, so that no request has to wait for them.
        """
        self._estimator.report(mbps)
        self._estimate_mbps = self._estimator.estimate()
        self._transfers.advance(_now_s(), self._grants_mbps)
        self._transfers.correct(mbps, _now_s())
        await self._regrant()

    async def peek(self, mbps: float) -> None:
        """The channel carries `mbps` from now on, which only estimators that look ahead use."""
        self._estimator.peek(mbps)
        self._estimate_mbps = self._estimator.estimate()
        await self._regrant()

    def announce(self, request: Request) -> None:
        """A request was released and will ask later: until then the policy plans for it as well."""
        if not self._policy.static_shares:
            ceiling_mbps = self._ceilings_mbps.get(request.agent_id)
            if ceiling_mbps is not None:
                request = _under_ceiling(request, ceiling_mbps, request.starts_s)
            self._announced[request.request_id] = request

    async def assign(self, request: Request) -> Plan:
        """Decide about a request; the grant in its plan is in force on return.

        Raises:
            ValueError: the policy can't serve these modes.
            NoWorkerAlive: no cloud worker is left, and the request has no mode that needs none.
        """
        self._announced.pop(request.request_id, None)
        now_s = _now_s()
        if request.agent_id in self._ceilings_mbps:
            request = _under_ceiling(request, self._ceilings_mbps[request.agent_id], now_s)
        solution, hedges = self._solve(now_s, asker=request)
        planned, meets = solution.choices[request.request_id]
        option = request.in_mode(planned.mode)
        if self._sheds and not meets and self._is_hopeless(request, now_s):
            return Plan(request.request_id, option, NO_WORKER, 0.0, math.inf, False, self._estimate_mbps, rejected=SHED)
        worker = NO_WORKER
        if option.wire_bytes:
            worker = self._dispatcher.choose(request.request_id, _job(request, option))
            if worker == NO_WORKER:
                local = local_option(request.options)
                if local is None:
                    raise NoWorkerAlive("no cloud worker is alive, and no mode is answered on the edge")
                option = local
                meets = now_s + option.edge_ms / 1e3 <= request.due_s
        if option.wire_bytes:
            self._transfers.add(request, planned, worker, now_s)
        await self._grant(self._shares(now_s) if self._policy.minimum_rate else solution.grants_mbps)
        mbps = self._grants_mbps.get(request.agent_id, 0.0) if option.wire_bytes else 0.0
        ready_s = self._ready_s(request, option, solution, mbps)
        hedge = hedges.get(request.request_id) if option.wire_bytes else None
        likely = solution.likely if worker != NO_WORKER else None
        return Plan(request.request_id, option, worker, mbps, ready_s, meets, self._estimate_mbps, hedge, likely=likely)

    def received(self, request_id: int) -> None:
        """The cloud needs no more of the request: its share of the uplink is free."""
        self._dispatcher.arrived(request_id)
        self._leave_uplink(request_id)

    def finish(self, request_id: int, gave_up: bool = False) -> None:
        """The request has ended; ids that were never assigned a worker are ignored.

        Args:
            gave_up: its agent stopped waiting: a worker that has the request serves it nevertheless.
        """
        self._announced.pop(request_id, None)
        self._dispatcher.done(request_id, gave_up)
        self._leave_uplink(request_id)

    def recall(self, reports_mbps: Iterable[float], peek_mbps: float) -> None:
        """Believe of the uplink what an allocator would that has had these reports, in order, and this last peek."""
        for mbps in reports_mbps:
            self._estimator.report(mbps)
        self._estimator.peek(peek_mbps)
        self._estimate_mbps = self._estimator.estimate()

    async def take_over(self, standing: Sequence[Standing]) -> None:
        """Go on with requests of another allocator, which has died. What has been sent is reckoned by their grants."""
        for each in standing:
            request, plan = each.request, each.plan
            if plan is None:
                self.announce(request)
            elif plan.option.wire_bytes:
                self._dispatcher.given(request.request_id, _job(request, plan.option), plan.worker)
                if each.received:
                    self._dispatcher.arrived(request.request_id)
                else:
                    self._transfers.add(request, plan.option, plan.worker, each.since_s)
                    self._grants_mbps.setdefault(request.agent_id, plan.grant_mbps)
        self._transfers.advance(_now_s(), self._grants_mbps)
        await self._regrant()

    async def relink(self) -> None:
        """Send all grants again: the link has been rebuilt."""
        await self._link.set_grants(dict(self._grants_mbps))

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

    def solve_gaps(self) -> list[Gap]:
        """The certificate of each decision about a request, from policies that certify."""
        return self._gaps

    def mean_grants_mbps(self) -> dict[int, float]:
        """The mean grant of each transfer that has ended, while it was on the wire, by request id."""
        return self._transfers.mean_grants_mbps

    def snapshot(self) -> Snapshot:
        """The present state."""
        grants_mbps = {agent.agent_id: 0.0 for agent in self._agents}
        for transfer in self._transfers:
            grants_mbps[transfer.agent_id] = self._grants_mbps.get(transfer.agent_id, 0.0)
        return Snapshot(
            self._estimate_mbps,
            len(self._transfers),
            len(self._announced),
            tuple(self._dispatcher.free_in_ms()),
            tuple(grants_mbps.values()),
        )

    async def switch(self, policy: Policy) -> None:
        """Decide by another policy from now on; the transfers in flight stay there."""
        self._take(policy)
        self._announced.clear()
        await self._regrant()

    def _leave_uplink(self, request_id: int) -> None:
        if not self._transfers.end(request_id, _now_s(), self._grants_mbps):
            return
        if self._policy.static_shares or not len(self._transfers):
            return
        if self._regranting is None:  # one for all that leave at this moment
            self._regranting = asyncio.create_task(self._regrant_after_departures())

    async def _regrant_after_departures(self) -> None:
        self._regranting = None
        await self._regrant()

    async def _regrant(self) -> None:
        """Fit the grants to the present estimate and transfers; no request is decided."""
        if self._policy.minimum_rate:
            await self._grant(self._shares(_now_s()))
        elif self._policy.static_shares or len(self._transfers):
            solution, _ = self._solve(_now_s())
            await self._grant(solution.grants_mbps)

    async def _grant(self, grants_mbps: Mapping[int, float]) -> None:
        """Send the grants that differ from those in force, no others."""
        static = self._policy.static_shares
        if static and self._static_for_mbps == self._estimate_mbps:
            return
        least_mbps = 0.0 if static else least_grant_mbps(self._estimate_mbps)
        in_force = self._grants_mbps
        changed = {}
        for agent_id, asked_mbps in grants_mbps.items():
            mbps = max(asked_mbps, least_mbps)
            if abs(mbps - in_force.get(agent_id, -1.0)) > TOLERANCE * mbps:
                changed[agent_id] = mbps
        if changed:
            self._transfers.advance(_now_s(), in_force)
            in_force |= changed
            await self._link.set_grants(changed)
        if static:
            self._static_for_mbps = self._estimate_mbps

    def _solve(self, now_s: float, asker: Request | None = None) -> tuple[Solution, dict[int, ModeOption]]:
        problem = self._problem(now_s, asker)
        rates_mbps: Sequence[float] = ()
        if self._hedges and asker is not None:
            rates_mbps = self._estimator.spread((asker.due_s - now_s) / self._rules.report_s)
        hedges: dict[int, ModeOption] = {}
        began_s = time.perf_counter()
        if len(rates_mbps) > 1 and asker is not None:
            solution, hedges = solve_hedged(self._policy, problem, rates_mbps)
        else:
            solution = self._policy.solve(beside_transfers(problem) if self._policy.minimum_rate else problem)
        self._solve_s.append(time.perf_counter() - began_s)
        if solution.gap is not None and asker is not None:
            self._gaps.append(solution.gap)
        return solution, hedges

    def _problem(self, now_s: float, asker: Request | None) -> Problem:
        requests = [] if asker is None else [asker]
        if self._policy.static_shares:
            return Problem(
                self._estimate_mbps,
                self._agents,
                tuple(requests),
                on_infeasible=self._rules.on_infeasible,
                now_s=now_s,
            )
        if asker is not None:
            busy = {transfer.agent_id for transfer in self._transfers} | {asker.agent_id}
            requests += [_as_of(now_s, request, busy) for request in _next_of_each_agent(self._announced.values())]
        self._transfers.advance(now_s, self._grants_mbps)
        free_s = begin_s = None
        if self._rules.cloud_time:
            free_s = tuple(now_s + ms / 1e3 for ms in self._dispatcher.free_in_ms())
            begin_in_ms = self._dispatcher.begin_in_ms()
            if begin_in_ms is not None:
                begin_s = tuple(now_s + ms / 1e3 for ms in begin_in_ms)
                requests = [replace(r, options=tuple(map(self._dispatcher.loaded, r.options))) for r in requests]
        requests = [request.with_first_token() for request in requests]
        return Problem(
            self._estimate_mbps,
            self._agents,
            tuple(requests),
            tuple(self._transfers),
            free_s,
            self._rules.on_infeasible,
            now_s,
            begin_s,
        )

    def _shares(self, now_s: float) -> dict[int, float]:
        """The uplink shared among those who send now, for policies that choose by minimum rate."""
        self._transfers.advance(now_s, self._grants_mbps)
        return share_uplink(self._transfers.before(tuple(self._announced.values()), now_s), self._uplink_mbps(), now_s)

    def _is_hopeless(self, request: Request, now_s: float) -> bool:
        """Whether no mode can meet the deadline itself, even at the best rate that may be and on an idle worker."""
        best_mbps = max(self._estimator.spread((request.due_s - now_s) / self._rules.report_s))
        alone = Problem(best_mbps, self._agents, (request,), tuple(self._transfers), now_s=now_s)
        left_ms = (request.deadline_s - now_s) * 1e3
        mbps = min(beside_transfers(alone).uplink_mbps, request.ceiling_mbps)
        return not any(option.meets(mbps, left_ms) for option in request.with_first_token().options)

    def _uplink_mbps(self) -> float:
        # A hedged plan may count on more than the estimate: grants must not take that back.
        return max(self._estimator.spread()) if self._hedges else self._estimate_mbps

    def _ready_s(self, request: Request, option: ModeOption, solution: Solution, mbps: float) -> float:
        """When the answer will be there by the grants in force and the rule by which they will change."""
        now_s = _now_s()
        sends_s = now_s + option.edge_ms / 1e3
        if not option.wire_bytes:
            return sends_s + option.cloud_ms / 1e3
        if self._policy.minimum_rate:
            transfers = [*self._transfers, *self._coming(solution)]
            ends = finish_times_s(transfers, self._uplink_mbps(), now_s, request.request_id)
            arrives_s = ends.get(request.request_id, float("inf"))
        else:
            arrives_s = sends_s + option.wire_bytes * 8e-6 / mbps if mbps > 0 else float("inf")
        try:
            return self._dispatcher.predict(request.request_id, arrives_s)
        except KeyError:  # the request ended while the grants were being sent
            return float("nan")

    def _coming(self, solution: Solution) -> list[Transfer]:
        """The transfers of announced requests, as they were planned with the last decision."""
        choices = solution.choices
        announced = [request for request in self._announced.values() if request.request_id in choices]
        return [
            planned_transfer(request, option, request.starts_s)
            for request in announced
            if (option := choices[request.request_id].option).wire_bytes
        ]


def _next_of_each_agent(announced: Iterable[Request]) -> Iterable[Request]:
    """The first announced request of each agent: those behind it can't be sent while it is."""
    first: dict[int, Request] = {}
    for request in announced:
        first.setdefault(request.agent_id, request)
    return first.values()


def _under_ceiling(request: Request, ceiling_mbps: float, now_s: float) -> Request:
    """The request with the options that its connection can carry in time; with the smallest if it can carry none."""
    left_ms = (request.due_s - now_s) * 1e3
    options = tuple(option for option in request.options if option.least_mbps(left_ms) <= ceiling_mbps)
    if not any(option.wire_bytes for option in options):
        options += (smallest_option(request.options),)
    return replace(request, options=options, ceiling_mbps=ceiling_mbps)


def _as_of(now_s: float, request: Request, busy: set[int]) -> Request:
    """An announced request as it looks now; it may be late in asking.

    If its agent is sending already, it waits for that: its share can go to the agent at once, so that the transfer
    before it is done in time for both.
    """
    if request.agent_id in busy:
        return replace(request, starts_s=now_s)
    return request if request.starts_s > now_s else replace(request, starts_s=now_s + SOON_S)


def _job(request: Request, option: ModeOption) -> CloudJob:
    prefill_ms, decode_ms = option.cloud_prefill_ms, option.cloud_ms - option.cloud_prefill_ms
    deadline_s = request.deadline_s - request.early_ms(option) / 1e3
    return CloudJob(deadline_s, prefill_ms, decode_ms, option.decoder, option.generation)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
