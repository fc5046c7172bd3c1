"""The simulated engine: a scenario on virtual time, with the live engine's own agents, cloud and allocators."""

import asyncio
import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from agents.arrivals import Arrival
from agents.host import AgentHost
from agents.record import Record
from cluster.interrupts import Interrupts, ignore
from cluster.recovery import Recoveries
from cluster.run_folder.accounting import INTERRUPTED, begin, finish
from cluster.run_folder.result import RunResult, Turn
from cluster.run_folder.timeline import Timeline
from cluster.scenario.schema import AllocatorSettings, Scenario
from cluster.simulated.fluid_link import FluidLink, FluidUplink
from cluster.simulated.parts import Restarts, SimulatedParts
from cluster.simulated.processes import SimulatedAllocator, SimulatedHelper, SimulatedWorker
from cluster.simulated.tcp_model import AgentPath
from cluster.simulated.virtual_loop import VirtualLoop
from cluster.turn import TurnContext
from cluster.wiring import make_allocator, make_host, make_terms, make_worker
from netem.wire import MAX_RATE_MBPS
from reports import files
from reports.schema import Summary


class _TurnLedger:
    """Keeps a turn's requests in memory. See `agents.record.Ledger`."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def issue(self, arrival: Arrival) -> None:
        self._turn.issued.add(arrival.request_id)

    def write(self, record: Record) -> None:
        self._turn.records.append(record)


class SimulatedEngine:
    """Runs one scenario, one turn per allocator, as fast as this process can.

    Args:
        ask_ms: what asking an allocator takes, there and back, by its name; nothing for those not named.
    """

    def __init__(self, scenario: Scenario, ask_ms: Mapping[str, float] | None = None) -> None:
        self._scenario = scenario
        self._ask_ms = ask_ms or {}
        self._stopped = False
        self._playing: asyncio.Task[None] | None = None
        self.result = RunResult()

    def stop(self, reason: str) -> None:
        """End the run soon, keeping what was recorded. May be called by a signal handler and in any thread."""
        if not self._stopped:
            self._stopped = True
            self.result.problems.append(reason)
            if self._playing is not None:
                self._playing.get_loop().call_soon_threadsafe(self._playing.cancel)

    def _lose_turn(self, host: AgentHost, turn: Turn, reason: str) -> None:
        """The turn can't go on; the next one can."""
        turn.cut_short = reason
        self.result.problems.append(f"{turn.allocator}: {reason}")
        host.stop(reason)

    def ended(self) -> int:
        """How many requests have ended so far."""
        return sum(len(turn.records) for turn in self.result.turns)

    def run(self) -> RunResult:
        """All turns, or as many as could be had."""
        counts: list[Counter[str]] = [Counter() for _ in range(self._scenario.cloud.workers)]
        with _seldom_collected():
            for settings in self._scenario.allocators:
                if self._stopped:
                    break
                turn = Turn(settings.name, Timeline(settings.name, settings.policy, self._scenario.deadline_ms))
                self.result.turns.append(turn)
                with asyncio.Runner(loop_factory=VirtualLoop) as runner:
                    for total, counted in zip(counts, runner.run(self._take_turn(settings, turn)), strict=True):
                        total.update(counted)
        self.result.workers = [dict(count) for count in counts]
        return self.result

    async def _take_turn(self, settings: AllocatorSettings, turn: Turn) -> list[Counter[str]]:
        """One allocator's turn, from the first arrival to the last record; what each worker counted."""
        s = self._scenario
        agents = range(len(s.agent_profiles))
        link = FluidLink(s.first_mbps, s.first_mbps / len(agents))
        helper = SimulatedHelper(link)
        workers = [SimulatedWorker(make_worker(s)) for _ in range(s.cloud.workers)]
        uplinks = [self._make_uplink(agent_id, link, workers) for agent_id in agents]
        host = make_host(s, agents, uplinks.__getitem__)
        allocator = make_allocator(s, settings, helper, self._ceilings_mbps())
        client = SimulatedAllocator(allocator, self._ask_ms.get(settings.name, 0.0))
        # The channel has held its first rate before the run begins, and the base station has seen it.
        await allocator.report(s.first_mbps)
        await allocator.peek(s.first_mbps)
        epoch_s = asyncio.get_running_loop().time()
        relayed = [agent_id for agent_id in agents if s.is_relayed(agent_id)] if s.cluster is not None else []
        parts = SimulatedParts(
            link, helper, client, workers, host, uplinks, s.hosts, relayed, settings.policy, s.first_mbps
        )
        context = TurnContext(s, settings, turn, parts, epoch_s)
        parts.restarts = Restarts(
            Recoveries(s.recovery, context.record),
            partial(make_worker, s),
            lambda policy: make_allocator(s, settings.model_copy(update={"policy": policy}), helper),
            s.recovery.silent_after_s(with_models=False),
            s.recovery.restart_s,
            context.spawn,
            context.watch,
            partial(self._lose_turn, host, turn),
        )
        for worker in workers:
            context.watch(worker.serving)
        context.start()
        released = host.run(s.schedule(), client, _TurnLedger(turn), epoch_s, make_terms(s, settings))
        self._playing = asyncio.create_task(released)
        if self._stopped:  # by a signal before there was anything to stop
            self._playing.cancel()
        await asyncio.wait([self._playing, context.failed], return_when=asyncio.FIRST_COMPLETED)
        if context.failed.done():
            context.failed.result()
        await context.end()
        if not self._playing.cancelled():
            self._playing.result()
        turn.solve_ms = client.allocator.solve_times_ms()
        turn.gaps = client.allocator.solve_gaps()
        turn.mean_grants_mbps = client.allocator.mean_grants_mbps()
        return [worker.counts for worker in workers]

    def _ceilings_mbps(self) -> list[float]:
        """What each agent's connection can use of any grant; empty if nothing is lost on the way."""
        if not self._scenario.impairments.active:
            return []
        congestion = self._scenario.uplink.transport.congestion
        agents = range(len(self._scenario.agent_profiles))
        ceilings = [AgentPath.of(self._scenario.impairments, a).ceiling_mbps(congestion) for a in agents]
        return [math.inf if mbps >= MAX_RATE_MBPS else mbps for mbps in ceilings]

    def _make_uplink(self, agent_id: int, link: FluidLink, workers: Sequence[SimulatedWorker]) -> FluidUplink:
        transport = self._scenario.uplink.transport
        path = AgentPath.of(self._scenario.impairments, agent_id)
        return FluidUplink(agent_id, link, workers, path, transport.congestion, transport.connections == "warm")


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Requests leave next to no garbage in cycles, and looking for it takes a seventh of the time."""
    usual = gc.get_threshold()
    gc.set_threshold(100_000, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


Ended = Callable[[], int]
"""How many requests have ended so far."""


def run_simulated(
    scenario: Scenario,
    run_dir: Path,
    ask_ms: Mapping[str, float] | None = None,
    interrupts: Interrupts | None = None,
    watching: Callable[[Ended], AbstractContextManager[object]] = nullcontext,
) -> Summary:
    """Run `scenario` on virtual time; the run folder and the returned summary are as those of a live run.

    Args:
        ask_ms: see `SimulatedEngine`.
        interrupts: entered already; they end the run with a partial result. Default: some of its own.
        watching: what it returns is entered while the run is on; shows the user how it goes.
    """
    facts = begin(scenario, run_dir, "simulated")
    facts.link, facts.privilege, facts.ask_ms = "fluid", "none needed", dict(ask_ms or {})
    facts.write(run_dir / files.RUN)
    engine = SimulatedEngine(scenario, ask_ms)
    with nullcontext(interrupts) if interrupts else Interrupts() as taken:
        taken.hand_to(partial(engine.stop, INTERRUPTED))
        began_s = time.perf_counter()
        with watching(engine.ended):
            result = engine.run()
        taken.hand_to(ignore)
        facts.wall_s = round(time.perf_counter() - began_s, 3)
        facts.write(run_dir / files.RUN)
        return finish(scenario, run_dir, facts, result)
