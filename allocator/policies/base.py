"""What a policy is, and the base of those that fix shares first and choose modes on top."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from allocator.adaptive import adaptive_mode
from allocator.problem import AgentInfo, Choice, ModeOption, Problem, Request, Solution


class Policy(Protocol):
    """Decides mode and grant for every request of a problem. What it knows is in the problem.

    Attributes:
        static_shares: its grants depend only on the uplink and the agents, so that neither announcements nor
            departures can change them.
        minimum_rate: it chooses modes by the lowest rate that each needs and gives no grants: `allocator.sharing`
            shares the uplink. Where requests come at any moment, it is asked about the rate that the transfers in
            flight leave.
        sheds: whether requests that can't be in time are rejected, where the scenario doesn't say. Policies that don't
            have it serve everything, as published.
        hedges: whether it plans for all rates that the uplink may have, instead of one, where the scenario doesn't say.
    """

    name: str
    static_shares: bool
    minimum_rate: bool

    def solve(self, problem: Problem) -> Solution:
        """A choice for every request in `problem.requests`; grants add up to at most `uplink_mbps`."""
        ...


def decided(policy: Policy, what: Literal["sheds", "hedges"], chosen: bool | None) -> bool:
    """Whether a policy does what its attribute of this name says, unless the scenario has chosen."""
    return bool(getattr(policy, what, False)) if chosen is None else chosen


class SharePolicy:
    """Fixed shares of the uplink for all agents, busy or not (as published); on its share each gets the best mode."""

    name: str
    static_shares = True
    minimum_rate = False
    _solved_for: tuple[float, int] | None = None
    _agents: tuple[AgentInfo, ...]
    _grants: Mapping[int, float]

    def shares(self, agents: Sequence[AgentInfo]) -> Mapping[int, float]:
        """Each agent's fraction of the uplink by agent id; fractions add up to 1."""
        raise NotImplementedError

    def choose(self, request: Request, mbps: float, time_left_ms: float) -> ModeOption:
        """The mode of a request on its agent's share."""
        return adaptive_mode(request.options, mbps, time_left_ms)

    def solve(self, problem: Problem) -> Solution:
        grants = self._static_grants(problem)
        choices = {}
        for request in problem.requests:
            mbps, time_left_ms = grants[request.agent_id], problem.time_left_ms(request)
            option = self.choose(request, mbps, time_left_ms)
            choices[request.request_id] = Choice(option, option.meets(mbps, time_left_ms))
        return Solution(choices, grants)

    def _static_grants(self, problem: Problem) -> Mapping[int, float]:
        """The same mapping as long as uplink and agents are the same: most calls are about a request."""
        if self._solved_for != (problem.uplink_mbps, id(problem.agents)):
            shares = self.shares(problem.agents)
            self._grants = {agent: share * problem.uplink_mbps for agent, share in shares.items()}
            self._agents = problem.agents  # alive, so that its id is its own
            self._solved_for = problem.uplink_mbps, id(problem.agents)
        return self._grants
