"""An allocator's surroundings in tests: a link that remembers, requests of a few words."""

import asyncio
from collections.abc import Mapping

from allocator.problem import AgentInfo, ModeOption, Request
from tests.support.options import option

CACHE = option("full", 1_000_000, 0, 100, 100)
AGENTS = [AgentInfo(number, 1) for number in range(4)]


def now_s() -> float:
    return asyncio.get_running_loop().time()


def request(
    number: int,
    *options: ModeOption,
    left_ms: float = 5000,
    starts_in_ms: float = 0.0,
    agent_id: int | None = None,
) -> Request:
    """Of the agent of the same number, and with CACHE, if nothing else is said; due `left_ms` after it starts."""
    starts_s = now_s() + starts_in_ms / 1e3
    due_s = starts_s + left_ms / 1e3
    return Request(number, number if agent_id is None else agent_id, due_s, options or (CACHE,), 1.0, starts_s)


class RecordingLink:
    """Knows all changes, when each came, and the grants after the last."""

    def __init__(self) -> None:
        self.calls: list[dict[int, float]] = []
        self.called_s: list[float] = []
        self.grants_mbps: dict[int, float] = {}

    async def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        self.calls.append(dict(grants_mbps))
        self.called_s.append(now_s())
        self.grants_mbps |= grants_mbps

    def mean_mbps(self, agent_id: int, begin_s: float, end_s: float) -> float:
        """The agent's grant, averaged over a time."""
        total = mbps = 0.0
        since_s = begin_s
        for called_s, call in zip([*self.called_s, end_s], [*self.calls, {}], strict=True):
            until_s = min(max(called_s, begin_s), end_s)
            total += mbps * (until_s - since_s)
            since_s, mbps = until_s, call.get(agent_id, mbps)
        return total / (end_s - begin_s)
