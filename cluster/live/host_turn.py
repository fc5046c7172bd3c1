"""One host's part of a turn, by as many processes, one after the other, as it takes."""

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path

from ray.exceptions import RayActorError

from agents.agent import Terms
from agents.arrivals import Arrival
from cluster.live.keeper import Keeper
from cluster.live.parts import LiveParts
from cluster.live.records import Collectors
from cluster.run_folder.ledger import give_up, skip
from cluster.scenario.schema import Scenario


@dataclass(frozen=True, slots=True)
class HostTurn:
    """Plays arrivals on hosts.

    Attributes:
        folder: of the turn's journals; each process of a host writes one of its own.
        epoch_s: the turn's start on the event loop's clock.
    """

    scenario: Scenario
    parts: LiveParts
    keeper: Keeper
    folder: Path
    epoch_s: float
    terms: Terms
    collectors: Collectors = field(default_factory=Collectors)

    async def play(self, number: int, arrivals: list[Arrival]) -> None:
        """Have a host release these; return when all have ended, or have a record that says why not."""
        tags = {"scenario": self.scenario.name, "allocator": self.folder.name}
        host, why = self.parts.hosts[number], f"{self.parts.host(number)} died"
        for life in itertools.count(1):
            journal = self.folder / (f"host-{number}.jsonl" if life == 1 else f"host-{number}-{life}.jsonl")
            if host is None:
                skip(journal, arrivals, self.scenario, why)
                return
            if life > 1:
                since_s = time.monotonic() - self.epoch_s
                skip(journal, [each for each in arrivals if each.intended_s < since_s], self.scenario, why)
                arrivals = [each for each in arrivals if each.intended_s >= since_s]
            there = self.collectors.journal(host, journal)
            run = host.actor.run.remote(arrivals, self.parts.allocator_actor, there, tags, self.epoch_s, self.terms)
            self.parts.adjust_again(host)
            try:
                await run
                return
            except RayActorError:
                await host.gone.wait()
            lost, arrivals = give_up(journal, arrivals, self.scenario, why)
            for request_id in lost:
                self.parts.allocator_actor.finish.remote(request_id)
            host = await self.keeper.again(host)
