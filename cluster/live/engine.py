"""The live engine: a scenario as Ray actors on real links, one turn per allocator, all with the same arrivals."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from agents.arrivals import Arrival
from cluster.live.here import PATIENCE_S
from cluster.live.host_turn import HostTurn
from cluster.live.keeper import Keeper, NotStarted, in_words, left
from cluster.live.nodes import Layout
from cluster.live.other_nodes import OtherNodes
from cluster.live.parts import LiveParts
from cluster.live.placement import Placement
from cluster.live.pool import Pool
from cluster.live.ray_metrics import UplinkMetrics
from cluster.live.ray_session import RaySession
from cluster.processes import StealMeter, children, ended, parent
from cluster.run_folder.controls import Inbox
from cluster.run_folder.result import RunResult, Turn
from cluster.run_folder.timeline import Timeline
from cluster.scenario.events import EventKind, Part
from cluster.scenario.schema import AllocatorSettings, Scenario
from cluster.turn import TurnContext
from cluster.wiring import make_terms
from netem.helper.client import LinkClient, LinkCounters, LinkLost, LinkRefused
from netem.helper.session import LinkSession, LinkUnavailable
from reports import files

ANSWER_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 2.0
START_DELAY_S = 0.5
BROKEN = (LinkLost, LinkRefused, LinkUnavailable, RayError)

Report = Callable[[str], None]


class RunAborted(RuntimeError):
    """The turn or the run can't go on; what was recorded so far stands."""


class LiveEngine:
    """Runs one scenario on an open Ray session and an open link."""

    def __init__(
        self,
        scenario: Scenario,
        run_dir: Path,
        ray_session: RaySession,
        placement: Placement | Layout,
        link: LinkSession,
        report: Report,
        others: OtherNodes | None = None,
    ) -> None:
        self._scenario = scenario
        self._run_dir = run_dir
        self._pool = Pool(scenario, ray_session, placement, link.socket_path, others)
        self._link = link
        self._others = others
        self._report = report
        self._stop = asyncio.Event()
        self._halt = self._stop  # of the turn that is on, or of the run
        self._inbox = Inbox(run_dir)
        self._context: TurnContext | None = None  # of the turn that is on
        self._watches: list[asyncio.Task[None]] = []
        self.result = RunResult()

    def stop(self, reason: str) -> None:
        """End the run soon, keeping what was recorded."""
        if not self._stop.is_set():
            self._stop.set()
            self.result.problems.append(reason)
            self._halt_turn(reason)

    def _lose_turn(self, reason: str) -> None:
        """End the turn that is on, which can't go on; the next one may."""
        if not self._halt.is_set():
            self.result.problems.append(f"{self.result.turns[-1].allocator}: {reason}")
            self._halt_turn(reason)

    def _halt_turn(self, reason: str) -> None:
        if self._halt is not self._stop and not self._halt.is_set():
            self.result.turns[-1].cut_short = reason
            self._halt.set()
        self._record(reason, "fault")

    def _record(self, text: str, kind: EventKind) -> None:
        if self._context is not None:
            self._context.record(text, kind)

    async def run(self) -> RunResult:
        """All turns, or as many as could be had; the journals hold the records."""
        for pid in children(os.getpid(), "gcs_server"):
            self._watch(pid, "Ray's GCS died")
        keeper: Keeper | None = None
        try:
            client = await LinkClient.open(self._link.socket_path, PATIENCE_S)
            before = await client.counters()  # what it took to verify the link
            parts = self._pool.parts(client)
            keeper = Keeper(self._scenario, self._pool, parts, self._link)
            for settings in self._scenario.allocators:
                if self._stop.is_set() or not await self._all_there(keeper, parts):
                    break
                await self._take_turn(settings, parts, keeper)
            if not self._stop.is_set():
                await self._count(client, before, parts, keeper)
        except (*BROKEN, RunAborted) as error:
            self.stop(in_words(error))
        finally:
            for watch in self._watches:
                watch.cancel()
            if keeper is not None:
                await keeper.close()
        return self.result

    async def _all_there(self, keeper: Keeper, parts: LiveParts) -> bool:
        """Start what is missing. Whether a turn can begin: the first one needs all, a later one a host and a worker."""
        began_s = time.monotonic()
        problems = await self._unless_halted(keeper.start_missing())
        if self.result.turns:
            self.result.problems += problems
            for lack in left(parts, spread=self._others is not None):
                self.stop(lack)
        elif problems:
            self.stop(problems[0])
        else:
            here = [process for process in parts.living(parts.workers + parts.hosts) if process.elsewhere is None]
            if here:
                self._watch(parent(here[0].pid), "Ray's raylet died")
            self.result.ready_s = time.monotonic() - began_s
            self._report(
                f"{len(self._scenario.agent_profiles)} agents in {len(parts.hosts)} actors and {len(parts.workers)} "
                f"cloud workers ready after {self.result.ready_s:.1f} s on a {self._link.kind} link"
            )
        return not self._stop.is_set()

    async def _count(self, client: LinkClient, before: LinkCounters, parts: LiveParts, keeper: Keeper) -> None:
        """What the parts have counted in all turns; those that died, since they were started again."""
        for number, worker in enumerate(parts.workers):
            counts = await self._answer(worker.actor.counts.remote()) if worker else {}
            died = keeper.deaths[Part("worker", number)]
            self.result.workers.append(counts | ({"died": died} if died else {}))
        if parts.helper is not None:
            counters = await client.counters()
            self.result.link = counters if keeper.deaths[parts.helper.part] else counters.since(before)
        for kind, processes in (("agents", parts.hosts), ("workers", parts.workers)):
            used = [process.actor.memory_mb.remote() for process in parts.living(processes)]
            self.result.memory_mb[kind] = await self._answer(asyncio.gather(*used))

    async def _take_turn(self, settings: AllocatorSettings, parts: LiveParts, keeper: Keeper) -> None:
        """One allocator's turn, from the first arrival to the last record."""
        folder = files.turn_journal(self._run_dir, settings.name)
        turn = Turn(settings.name, Timeline(settings.name, settings.policy, self._scenario.deadline_ms, folder))
        self.result.turns.append(turn)
        folder.mkdir(parents=True)
        self._halt = asyncio.Event()
        try:
            await self._unless_halted(keeper.begin_turn(settings, self._record, self._lose_turn))
            await self._play_turn(settings, turn, parts, keeper)
        except (*BROKEN, RunAborted, NotStarted) as error:
            self._lose_turn(in_words(error))
        finally:
            await keeper.end_turn()
            self._halt, self._context = self._stop, None

    async def _play_turn(self, settings: AllocatorSettings, turn: Turn, parts: LiveParts, keeper: Keeper) -> None:
        s = self._scenario
        # The channel has held its first rate before the run begins, and the base station has seen it.
        await parts.set_channel(s.first_mbps)
        await self._answer(parts.allocator_actor.report.remote(s.first_mbps))
        await self._answer(parts.allocator_actor.peek.remote(s.first_mbps))
        arrivals = self._arrivals_by_host(len(parts.hosts))
        self._report(f"allocator {turn.allocator}: {sum(map(len, arrivals))} requests")
        epoch_s = time.monotonic() + START_DELAY_S
        metrics = UplinkMetrics(s.name, turn.allocator)
        context = TurnContext(s, settings, turn, parts, epoch_s, self._inbox, metrics.show)
        context.failed.add_done_callback(self._turn_failed)
        self._context = context
        context.start()
        steal = StealMeter()
        folder = files.turn_journal(self._run_dir, turn.allocator)
        hosts = HostTurn(s, parts, keeper, folder, epoch_s, make_terms(s, settings))
        try:
            await self._release(arrivals, hosts)
        finally:
            await context.end()
            await hosts.collectors.finish()
            turn.stolen = steal.share()
        if not self._halt.is_set():
            turn.solve_ms = await self._answer(parts.allocator_actor.solve_times_ms.remote())
            turn.gaps = await self._answer(parts.allocator_actor.solve_gaps.remote())
            turn.mean_grants_mbps = await self._answer(parts.allocator_actor.mean_grants_mbps.remote())
            # What timed out may still be queued there; the next allocator must not pay for it.
            settled = asyncio.gather(*[worker.actor.settle.remote() for worker in parts.living(parts.workers)])
            await self._answer(settled)

    def _turn_failed(self, failed: asyncio.Future[None]) -> None:
        """The channel stands still from now on, and the turn would be worth nothing."""
        if not failed.cancelled() and (error := failed.exception()) is not None:
            self._lose_turn(f"the channel: {in_words(error)}")

    def _arrivals_by_host(self, hosts: int) -> list[list[Arrival]]:
        arrivals: list[list[Arrival]] = [[] for _ in range(hosts)]
        for arrival in self._scenario.schedule():
            arrivals[self._scenario.host_of[arrival.agent_id]].append(arrival)
        return arrivals

    async def _release(self, arrivals: list[list[Arrival]], hosts: HostTurn) -> None:
        """Let every host play its agents' arrivals, until all are done or the turn is halted."""
        plays = [asyncio.create_task(hosts.play(number, own)) for number, own in enumerate(arrivals)]
        halted = asyncio.create_task(self._halt.wait())
        pending: set[asyncio.Task[Any]] = {*plays, halted}
        while pending - {halted} and not halted.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for play in done - {halted}:
                if (error := play.exception()) is not None:
                    self._lose_turn(in_words(error))
        halted.cancel()
        if self._halt.is_set():
            if self._context is not None:
                await self._context.end()  # what is frozen can't stop
            for host in hosts.parts.living(hosts.parts.hosts):
                host.actor.stop.remote(self.result.turns[-1].cut_short)
            await asyncio.wait(plays, timeout=STOP_TIMEOUT_S)
            for play in plays:
                play.cancel()
            await asyncio.gather(*plays, return_exceptions=True)

    def _watch(self, pid: int, reason: str) -> None:
        """Stop at once when a process has ended; Ray itself takes up to 15 s and more to say so."""

        async def wait() -> None:
            await ended(pid)
            self.stop(reason)

        self._watches.append(asyncio.create_task(wait()))

    async def _answer(self, work: Any) -> Any:
        """What an actor that is ready answers. Raises also RunAborted, if the turn or the run ends first."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self._unless_halted(work)
        except TimeoutError:
            raise RunAborted(f"an actor has not answered for {ANSWER_TIMEOUT_S:g} s") from None

    async def _unless_halted(self, work: Any) -> Any:
        """The result of `work`. Raises RunAborted if the turn or the run ends first."""
        halted = asyncio.create_task(self._halt.wait())
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, halted}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise RunAborted("stopped while starting")
        finally:
            halted.cancel()
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        return await task
