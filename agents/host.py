"""Several edge agents in one process: releases their requests at their intended times."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agents.agent import Adjustment, Agent, AgentSettings, AllocatorClient, Terms
from agents.arrivals import Arrival
from agents.edge import EdgeRuntime
from agents.record import Ledger
from agents.uplink import Uplink
from allocator.online.standing import Standing
from allocator.problem import ModeOption
from kvcache.modes import Mode
from models.clock import sleep_until


@dataclass(frozen=True, slots=True)
class Seat:
    """One agent's place in a host: who it is, what it computes with, how it reaches the cloud."""

    settings: AgentSettings
    edge: EdgeRuntime
    uplink: Uplink


class AgentHost:
    """Plays arrival schedules on its agents, one schedule after another."""

    def __init__(self, seats: Sequence[Seat]) -> None:
        self._seats = seats
        self._agents: dict[int, Agent] = {}
        self._running: asyncio.Task[None] | None = None

    async def run(
        self,
        arrivals: Sequence[Arrival],
        allocator: AllocatorClient,
        ledger: Ledger,
        epoch_s: float,
        terms: Terms | None = None,
    ) -> None:
        """Release `arrivals` (in order of time) at `epoch_s` plus their intended time; returns when all have ended."""
        terms = terms or Terms()
        offered = _Offers(terms.modes)
        self._agents = {
            seat.settings.agent_id: Agent(
                replace(seat.settings, options=offered.of(seat.settings.options)),
                seat.edge,
                seat.uplink,
                allocator,
                ledger,
                epoch_s,
                terms,
            )
            for seat in self._seats
        }
        self._running = asyncio.current_task()
        try:
            async with asyncio.TaskGroup() as requests:
                for arrival in arrivals:
                    await sleep_until(epoch_s + arrival.intended_s)
                    requests.create_task(self._agents[arrival.agent_id].serve(arrival))
        finally:
            self._running = None
            self._agents = {}

    def adjust(self, change: Adjustment, agent_id: int | None = None) -> None:
        """Change what one agent, or all, go by until the schedule has ended."""
        for number, agent in self._agents.items():
            if agent_id is None or number == agent_id:
                agent.adjust(change)

    def standing(self) -> list[Standing]:
        """The requests that have been announced to the allocator and have not ended."""
        return [request for agent in self._agents.values() for request in agent.standing()]

    def relink(self, reason: str) -> None:
        """All agents' connections have been lost, for this reason."""
        for seat in self._seats:
            seat.uplink.close(reason)

    def stop(self, reason: str) -> None:
        """End a running schedule: nothing more is released, and requests in flight fail for this reason."""
        self.adjust(Adjustment(down=reason))
        if self._running is not None:
            self._running.cancel()


class _Offers:
    """Options in the modes that may be assigned; agents of one model go on sharing one tuple."""

    def __init__(self, modes: frozenset[Mode] | None) -> None:
        self._modes = modes
        self._found: dict[tuple[ModeOption, ...], tuple[ModeOption, ...]] = {}

    def of(self, options: tuple[ModeOption, ...]) -> tuple[ModeOption, ...]:
        if self._modes is None:
            return options
        if options not in self._found:
            self._found[options] = tuple(option for option in options if option.mode in self._modes)
        return self._found[options]
