"""Several edge agents in one process: releases their requests at their intended times."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from agents.agent import Agent, AgentSettings, AllocatorClient
from agents.arrivals import Arrival
from agents.edge import EdgeRuntime
from agents.record import Ledger
from agents.uplink import Uplink
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
        self._running: asyncio.Task[None] | None = None

    async def run(
        self,
        arrivals: Sequence[Arrival],
        allocator: AllocatorClient,
        ledger: Ledger,
        epoch_s: float,
    ) -> None:
        """Release `arrivals` (in order of time) at `epoch_s` plus their intended time; returns when all have ended."""
        agents = {
            seat.settings.agent_id: Agent(seat.settings, seat.edge, seat.uplink, allocator, ledger, epoch_s)
            for seat in self._seats
        }
        self._running = asyncio.current_task()
        try:
            async with asyncio.TaskGroup() as requests:
                for arrival in arrivals:
                    await sleep_until(epoch_s + arrival.intended_s)
                    requests.create_task(agents[arrival.agent_id].serve(arrival))
        finally:
            self._running = None

    def stop(self) -> None:
        """End a running schedule: nothing more is released, what is in flight fails as interrupted."""
        if self._running is not None:
            self._running.cancel()
