"""What a policy is, and the base of those that fix shares first and choose modes on top."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from allocator.modes import adaptive_mode
from allocator.problem import ROUNDING, AgentInfo, Assignment, ModeOption, Problem, Request, Solution


class Policy(Protocol):
    """Decides mode and grant for every request of a problem. What it knows is in the problem.

    Attributes:
        standing: its grants depend on nothing but the uplink and the agents, so that neither announcements nor
            departures can change them.
        by_need: it chooses modes by what they need of the uplink. Where requests come at any moment it is asked about
            what those in flight leave, and the uplink is shared by due time (see `allocator.online.due_shares`) instead
            of by its grants, which are for requests that start together.
    """

    name: str
    standing: bool
    by_need: bool

    def solve(self, problem: Problem) -> Solution:
        """An assignment for every request in `problem.requests`; grants add up to at most `uplink_mbps`."""
        ...


class SharePolicy:
    """Standing shares of the uplink for all agents, busy or not (as published), and a mode for each on its share."""

    name: str
    standing = True
    by_need = False
    _solved_for: tuple[float, int] | None = None
    _agents: tuple[AgentInfo, ...]
    _grants: Mapping[int, float]

    def shares(self, agents: Sequence[AgentInfo]) -> Mapping[int, float]:
        """Each agent's fraction of the uplink by agent id; fractions add up to 1."""
        raise NotImplementedError

    def choose(self, request: Request, mbps: float) -> ModeOption:
        """The mode of a request on its agent's share."""
        return adaptive_mode(request.options, mbps, request.time_left_ms)

    def solve(self, problem: Problem) -> Solution:
        grants = self._standing_grants(problem)
        assignments = {}
        for request in problem.requests:
            mbps = grants[request.agent_id]
            option = self.choose(request, mbps)
            latency_ms = option.latency_ms(mbps)
            meets = latency_ms <= request.time_left_ms * (1 + ROUNDING)
            assignments[request.request_id] = Assignment(request.request_id, option.mode, mbps, latency_ms, meets)
        return Solution(assignments, grants)

    def _standing_grants(self, problem: Problem) -> Mapping[int, float]:
        """The same mapping as long as uplink and agents are the same: most calls are about a request."""
        if self._solved_for != (problem.uplink_mbps, id(problem.agents)):
            shares = self.shares(problem.agents)
            self._grants = {agent: share * problem.uplink_mbps for agent, share in shares.items()}
            self._agents = problem.agents  # alive, so that its id is its own
            self._solved_for = problem.uplink_mbps, id(problem.agents)
        return self._grants
