"""Shares in proportion to the size of each agent's full cache."""

from collections.abc import Mapping, Sequence

from allocator.policies.base import SharePolicy
from allocator.problem import AgentInfo


class ModelAware(SharePolicy):
    """B * kv_bytes / sum of kv_bytes, the adaptive mode choice on top (the papers' answer to congestion)."""

    name = "model_aware"

    def shares(self, agents: Sequence[AgentInfo]) -> Mapping[int, float]:
        total = sum(agent.kv_bytes for agent in agents)
        return {agent.agent_id: agent.kv_bytes / total for agent in agents}
