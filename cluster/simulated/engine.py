"""The simulated engine: a scenario on virtual time, with the live engine's own agents, cloud and allocators."""

import asyncio
import gc
import itertools
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from agents.arrivals import Arrival
from agents.record import Record
from allocator.online.service import Allocator, Decision
from allocator.problem import Request
from cluster.channel_player import play
from cluster.run_folder.accounting import INTERRUPTED, begin, finish
from cluster.run_folder.result import RunResult, Turn
from cluster.run_folder.timeline import PERIOD_S, Timeline
from cluster.scenario.schema import AllocatorSettings, Scenario
from cluster.simulated.fluid_link import FluidLink, FluidUplink
from cluster.simulated.tcp_model import AgentPath
from cluster.simulated.virtual_loop import VirtualLoop
from cluster.wiring import make_allocator, make_host, make_terms, make_worker
from models.clock import now_s, sleep_ms, sleep_until
from netem.channels import RateChange
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


class _DistantAllocator:
    """An allocator that it takes a while to ask. See `agents.agent.AllocatorClient`."""

    def __init__(self, allocator: Allocator, ask_ms: float) -> None:
        self._allocator = allocator
        self._way_ms = ask_ms / 2
        self._loop = asyncio.get_running_loop()

    def announce(self, request: Request) -> None:
        self._loop.call_later(self._way_ms / 1e3, self._allocator.announce, request)

    async def assign(self, request: Request) -> Decision:
        await sleep_ms(self._way_ms)
        decision = await self._allocator.assign(request)
        await sleep_ms(self._way_ms)
        return decision

    def received(self, request_id: int) -> None:
        self._loop.call_later(self._way_ms / 1e3, self._allocator.received, request_id)

    def finish(self, request_id: int, gave_up: bool = False) -> None:
        self._loop.call_later(self._way_ms / 1e3, self._allocator.finish, request_id, gave_up)


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
        """End the run soon, keeping what was recorded. May be called by a signal handler."""
        if not self._stopped:
            self._stopped = True
            self.result.problems.append(reason)
            if self._playing is not None:
                self._playing.cancel()

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
        agents = len(s.agent_profiles)
        first_mbps = next(iter(s.uplink.channel.play(s.seed))).mbps
        link = FluidLink(first_mbps, first_mbps / agents)
        workers = [make_worker(s) for _ in range(s.cloud.workers)]
        impairments, transport = s.impairments, s.uplink.transport

        def uplink(agent_id: int) -> FluidUplink:
            path = AgentPath.of(impairments, agent_id)
            return FluidUplink(agent_id, link, workers, path, transport.congestion, transport.connections == "warm")

        host = make_host(s, range(agents), uplink)
        allocator = make_allocator(s, settings, link)
        # The channel has held its first rate before the run begins, and the base station has seen it.
        await allocator.report(first_mbps)
        await allocator.peek(first_mbps)
        ask_ms = self._ask_ms.get(settings.name, 0.0)
        client = _DistantAllocator(allocator, ask_ms) if ask_ms else allocator
        epoch_s = asyncio.get_running_loop().time()
        terms = make_terms(s, settings)

        async def change(event: RateChange) -> None:
            if event.at_s > 0:
                link.set_channel(event.mbps)
                await allocator.peek(event.mbps)
            turn.timeline.channel_mbps = event.mbps
            turn.channel.append((event.at_s, now_s() - epoch_s, event.mbps))

        async def look() -> None:
            for number in itertools.count():
                await sleep_until(epoch_s + number * PERIOD_S)
                turn.timeline.take(now_s() - epoch_s, link.used_bytes(), allocator.snapshot())

        serving = [asyncio.create_task(worker.serve_queue()) for worker in workers]
        playing = asyncio.create_task(play(s, epoch_s, change, allocator.report))
        looking = asyncio.create_task(look())
        self._playing = asyncio.create_task(host.run(s.schedule(), client, _TurnLedger(turn), epoch_s, terms))
        if self._stopped:  # by a signal before there was anything to stop
            self._playing.cancel()
        await asyncio.wait([self._playing, playing, looking, *serving], return_when=asyncio.FIRST_COMPLETED)
        for task in (*serving, playing, looking):
            if task.done():
                task.result()  # neither ends but by an error
            task.cancel()
        if not self._playing.cancelled():
            self._playing.result()
        turn.solve_ms = allocator.solve_times_ms()
        return [worker.counts for worker in workers]


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Requests leave next to no garbage in cycles, and looking for it takes a seventh of the time."""
    usual = gc.get_threshold()
    gc.set_threshold(100_000, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def run_simulated(scenario: Scenario, run_dir: Path, ask_ms: Mapping[str, float] | None = None) -> Summary:
    """Run `scenario` on virtual time; the run folder and the returned summary are as those of a live run.

    Args:
        ask_ms: see `SimulatedEngine`.
    """
    facts = begin(scenario, run_dir, "simulated")
    facts.link, facts.privilege, facts.ask_ms = "fluid", "none needed", dict(ask_ms or {})
    facts.write(run_dir / files.RUN)
    engine = SimulatedEngine(scenario, ask_ms)
    with _stopped_by_signals(engine):
        began_s = time.perf_counter()
        result = engine.run()
        facts.wall_s = round(time.perf_counter() - began_s, 3)
        facts.write(run_dir / files.RUN)
        return finish(scenario, run_dir, facts, result)


@contextmanager
def _stopped_by_signals(engine: SimulatedEngine) -> Iterator[None]:
    """SIGINT and SIGTERM end the run, and are passed on to a handler that the caller has for what comes after it."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def stop(signum: int, frame: FrameType | None) -> None:
        engine.stop(INTERRUPTED)
        handler = before[signal.Signals(signum)]
        if callable(handler) and handler is not signal.default_int_handler:
            handler(signum, frame)

    for signum in before:
        signal.signal(signum, stop)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
