"""The central allocator at work: serves requests one by one as they come, and keeps the link's grants in step."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from allocator.policies import Policy
from allocator.problem import AgentInfo, Assignment, Problem, Request


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


class Dispatcher(Protocol):
    """Picks a cloud worker. See `cloud.dispatch`."""

    def choose(self, cloud_ms: float) -> int:
        """A worker for a request that will occupy it for `cloud_ms`."""
        ...

    def done(self, worker: int, cloud_ms: float) -> None:
        """That work is off the worker, however it ended."""
        ...


class Link(Protocol):
    """Carries grants out."""

    async def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        """Give each named agent its share of the uplink from now on."""
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What an agent is told: assignment, cloud worker (-1 for `local`), and the estimate behind it."""

    assignment: Assignment
    worker: int
    estimate_mbps: float


class Allocator:
    """One allocation policy serving all agents of a run."""

    def __init__(
        self,
        agents: Sequence[AgentInfo],
        policy: Policy,
        estimator: Estimator,
        dispatcher: Dispatcher,
        link: Link,
    ) -> None:
        self._agents = tuple(agents)
        self._policy = policy
        self._estimator = estimator
        self._dispatcher = dispatcher
        self._link = link
        self._grants_mbps: dict[int, float] = {}
        self._assigning: set[int] = set()
        self._dispatched: dict[int, tuple[int, float]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._solve_s: list[float] = []

    async def report(self, mbps: float) -> None:
        """The base station measured `mbps` over the interval that has just ended.

        Standing grants follow the new estimate at once, so that no request has to wait for them.
        """
        self._estimator.report(mbps)
        async with self._one_at_a_time:
            await self._solve(())

    async def peek(self, mbps: float) -> None:
        """The channel carries `mbps` from now on, which only estimators that look ahead use."""
        self._estimator.peek(mbps)
        async with self._one_at_a_time:
            await self._solve(())

    async def assign(self, request: Request) -> Decision:
        """Decide mode, grant and worker of a request; its agent's grant is in force on return.

        Raises:
            ValueError: the policy can't serve these modes.
        """
        self._assigning.add(request.request_id)
        try:
            async with self._one_at_a_time:
                assignment = (await self._solve((request,)))[request.request_id]
            option = next(o for o in request.options if o.mode == assignment.mode)
            worker = -1
            if option.wire_bytes:
                worker = self._dispatcher.choose(option.cloud_ms)
                self._dispatched[request.request_id] = (worker, option.cloud_ms)
                if request.request_id not in self._assigning:
                    self.finish(request.request_id)  # the agent gave up while this was being decided
            return Decision(assignment, worker, self._estimator.estimate())
        finally:
            self._assigning.discard(request.request_id)

    def finish(self, request_id: int) -> None:
        """The request has ended, however; ids that were never assigned a worker are fine."""
        self._assigning.discard(request_id)
        if request_id in self._dispatched:
            self._dispatcher.done(*self._dispatched.pop(request_id))

    def solve_times_ms(self) -> list[float]:
        """How long each solve took, without applying the grants."""
        return [s * 1e3 for s in self._solve_s]

    async def _solve(self, requests: tuple[Request, ...]) -> Mapping[int, Assignment]:
        start = time.perf_counter()
        solution = self._policy.solve(Problem(self._estimator.estimate(), self._agents, requests))
        self._solve_s.append(time.perf_counter() - start)
        changed = {a: mbps for a, mbps in solution.grants_mbps.items() if self._grants_mbps.get(a) != mbps}
        if changed:
            await self._link.set_grants(changed)
            self._grants_mbps |= changed
        return solution.assignments
