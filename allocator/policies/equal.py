"""Every agent gets the same share."""

from collections.abc import Mapping, Sequence

from allocator.policies.base import SharePolicy
from allocator.problem import AgentInfo


class Equal(SharePolicy):
    """B/N for each of the N agents of the scenario, the adaptive mode choice on top (the papers' baseline)."""

    name = "equal"

    def shares(self, agents: Sequence[AgentInfo]) -> Mapping[int, float]:
        return {agent.agent_id: 1 / len(agents) for agent in agents}
