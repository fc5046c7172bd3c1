"""The live engine: a scenario as Ray actors on real links, one turn per allocator, all with the same arrivals."""

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from agents.agent import Terms
from agents.arrivals import Arrival
from cluster.live.nodes import Layout
from cluster.live.other_nodes import OtherNodes
from cluster.live.parts import LiveParts, Process
from cluster.live.placement import Placement
from cluster.live.pool import Pool
from cluster.live.ray_metrics import UplinkMetrics
from cluster.live.ray_session import RaySession
from cluster.live.records import Collectors
from cluster.processes import StealMeter, children, ended, parent
from cluster.run_folder.controls import Inbox
from cluster.run_folder.ledger import give_up
from cluster.run_folder.result import RunResult, Turn
from cluster.run_folder.timeline import Timeline
from cluster.scenario.events import Part
from cluster.scenario.schema import AllocatorSettings, Scenario
from cluster.turn import TurnContext
from cluster.wiring import make_terms
from netem.helper.client import LinkClient, LinkLost, LinkRefused
from netem.helper.session import LinkSession
from reports import files

READY_TIMEOUT_S = 120.0
MODELS_TIMEOUT_S = 900.0  # to load them, and on a GPU to compile how they decode
STOP_TIMEOUT_S = 2.0
START_DELAY_S = 0.5

Report = Callable[[str], None]


class RunAborted(RuntimeError):
    """The run can't go on; what was recorded so far stands."""


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
        self._report = report
        self._stop = asyncio.Event()
        self._inbox = Inbox(run_dir)
        self._context: TurnContext | None = None  # of the turn that is on
        self._watches: dict[int | Part, asyncio.Task[None]] = {}  # by process id; of actors elsewhere by part
        self.result = RunResult()

    def stop(self, reason: str) -> None:
        """End the run soon, keeping what was recorded."""
        if not self._stop.is_set():
            self.result.problems.append(reason)
            if self._context is not None:
                self._context.record(reason, fault=True)
            self._stop.set()

    async def run(self) -> RunResult:
        """All turns, or as many as could be had; the journals hold the records."""
        self._watch(self._link.pid, partial(self.stop, f"{Part('helper')} died"))
        for pid in children(os.getpid(), "gcs_server"):
            self._watch(pid, partial(self.stop, "Ray's GCS died"))
        try:
            client = await LinkClient.open(self._link.socket_path)
            before = await client.counters()  # what it took to verify the link
            parts = self._pool.parts(client, self._link.pid)
            for settings in self._scenario.allocators:
                if self._stop.is_set():
                    break
                await self._start_missing(parts)
                await self._take_turn(settings, client, parts)
            if not self._stop.is_set():
                self.result.workers = [
                    await self._answer(worker.actor.counts.remote()) if worker else {"died": 1}
                    for worker in parts.workers
                ]
                self.result.link = (await client.counters()).since(before)
                for kind, processes in (("agents", parts.hosts), ("workers", parts.workers)):
                    used = [process.actor.memory_mb.remote() for process in parts.living(processes)]
                    self.result.memory_mb[kind] = await self._answer(asyncio.gather(*used))
        except (LinkLost, LinkRefused, RayError, RunAborted) as error:
            self.stop(_in_words(error))
        finally:
            for watch in self._watches.values():
                watch.cancel()
        return self.result

    async def _start_missing(self, parts: LiveParts) -> None:
        """Start the actors that aren't there: all before the first turn, later those that died.

        So every turn begins as the scenario says, whatever happened in the one before.
        """
        began_s = time.monotonic()
        timeout_s = MODELS_TIMEOUT_S if self._scenario.real_models else READY_TIMEOUT_S
        # Workers listen first; agents then connect.
        for processes, actors in self._pool.create_missing(parts):
            ready: asyncio.Future[list[int]] = asyncio.gather(*[actor.start.remote() for _, actor in actors])
            pids = await self._unless_stopped(ready, timeout_s)
            for (part, actor), pid in zip(actors, pids, strict=True):
                number = parts.index(part)
                process = processes[number] = Process(part, pid, actor, self._pool.elsewhere(part, number))
                self._watch_actor(process, partial(self._died, processes, number, parts))
        if not self.result.turns:
            here = [process for process in parts.living(parts.workers + parts.hosts) if process.elsewhere is None]
            if here:
                self._watch(parent(here[0].pid), partial(self.stop, "Ray's raylet died"))
            self.result.ready_s = time.monotonic() - began_s
            self._report(
                f"{len(self._scenario.agent_profiles)} agents in {len(parts.hosts)} actors and {len(parts.workers)} "
                f"cloud workers ready after {self.result.ready_s:.1f} s on a {self._link.kind} link"
            )

    def _died(self, processes: list[Process | None], number: int, parts: LiveParts) -> None:
        """The turn goes on without a worker that has ended, and without a host if an event ended it."""
        process = processes[number]
        assert process is not None
        if processes is parts.hosts and not process.killed:
            self.stop(f"{process.part} died")
            return
        processes[number] = None
        if self._context is not None and not process.killed:
            self._context.record(f"{process.part} died", fault=True)
        if processes is parts.workers and parts.allocator is not None:
            parts.allocator.actor.worker_lost.remote(number)

    async def _take_turn(self, settings: AllocatorSettings, client: LinkClient, parts: LiveParts) -> None:
        """One allocator's turn, from the first arrival to the last record."""
        s, name = self._scenario, settings.name
        folder = files.turn_journal(self._run_dir, name)
        turn = Turn(name, Timeline(name, settings.policy, s.deadline_ms, folder))
        self.result.turns.append(turn)
        folder.mkdir(parents=True)
        allocator = self._pool.create_allocator(settings)
        pid = None
        try:
            pid = await self._answer(allocator.start.remote())
            parts.allocator = Process(Part("allocator"), pid, allocator)
            self._watch(pid, partial(self.stop, f"{Part('allocator')} died"))
            await client.set_channel(s.first_mbps)
            # The channel has held its first rate before the run begins, and the base station has seen it.
            await allocator.report.remote(s.first_mbps)
            await allocator.peek.remote(s.first_mbps)
            arrivals = self._arrivals_by_host(len(parts.hosts))
            self._report(f"allocator {name}: {sum(map(len, arrivals))} requests")
            epoch_s = time.monotonic() + START_DELAY_S
            metrics = UplinkMetrics(s.name, name)
            context = TurnContext(s, settings, turn, parts, epoch_s, self._inbox, metrics.show)
            context.failed.add_done_callback(self._turn_failed)
            self._context = context
            context.start()
            steal = StealMeter()
            try:
                await self._release(arrivals, parts, allocator, folder, epoch_s, make_terms(s, settings))
            finally:
                await context.end()
                turn.stolen = steal.share()
            if not self._stop.is_set():
                turn.solve_ms = await self._answer(allocator.solve_times_ms.remote())
                turn.mean_grants_mbps = await self._answer(allocator.mean_grants_mbps.remote())
                # What timed out may still be queued there; the next allocator must not pay for it.
                settled = asyncio.gather(*[worker.actor.settle.remote() for worker in parts.living(parts.workers)])
                await self._answer(settled)
        finally:
            if pid in self._watches:
                self._watches.pop(pid).cancel()
            parts.allocator = self._context = None
            ray.kill(allocator)

    def _turn_failed(self, failed: asyncio.Future[None]) -> None:
        """The channel stands still from now on, and the run would be worth nothing."""
        if not failed.cancelled() and (error := failed.exception()) is not None:
            self.stop(f"the channel: {_in_words(error)}")

    def _arrivals_by_host(self, hosts: int) -> list[list[Arrival]]:
        arrivals: list[list[Arrival]] = [[] for _ in range(hosts)]
        for arrival in self._scenario.schedule():
            arrivals[self._scenario.host_of[arrival.agent_id]].append(arrival)
        return arrivals

    async def _release(
        self,
        arrivals: list[list[Arrival]],
        parts: LiveParts,
        allocator: ActorHandle,
        folder: Path,
        epoch_s: float,
        terms: Terms,
    ) -> None:
        """Let every host play its agents' arrivals, until all are done or the run is stopped."""
        tags = {"scenario": self._scenario.name, "allocator": folder.name}
        runs: dict[asyncio.Future[None], tuple[Process, Path, list[Arrival]]] = {}
        collectors = Collectors()
        for number, host in enumerate(parts.living(parts.hosts)):
            own, journal = arrivals[number], folder / f"host-{number}.jsonl"
            run = host.actor.run.remote(own, allocator, collectors.journal(host, journal), tags, epoch_s, terms)
            runs[asyncio.ensure_future(run)] = host, journal, own
        stopped = asyncio.create_task(self._stop.wait())
        pending: set[asyncio.Future] = {*runs, stopped}
        while pending - {stopped} and not stopped.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for run in done - {stopped}:
                host, journal, own = runs[run]
                if (error := run.exception()) is None:
                    continue
                if host.killed:
                    for request_id in give_up(journal, own, self._scenario, f"{host.part} died"):
                        allocator.finish.remote(request_id)
                else:
                    self.stop(f"{host.part} died" if isinstance(error, RayActorError) else _in_words(error))
        stopped.cancel()
        if self._stop.is_set():
            if self._context is not None:
                await self._context.end()  # what is frozen can't stop
            for host in parts.living(parts.hosts):
                host.actor.stop.remote(self.result.problems[0])
            await asyncio.wait(runs, timeout=STOP_TIMEOUT_S)
            for run in runs:
                run.cancelled() or (run.done() and run.exception())  # seen: what happened is in `problems`
        await collectors.finish()

    def _watch(self, pid: int, died: Callable[[], None]) -> None:
        """Call `died` at once when a process has ended; Ray itself takes up to 15 s and more to say so."""

        async def wait() -> None:
            await ended(pid)
            died()

        self._watches[pid] = asyncio.create_task(wait())

    def _watch_actor(self, process: Process, died: Callable[[], None]) -> None:
        """The same of an actor's process, which may be on another node; Ray tells of those as soon as it knows."""
        if process.elsewhere is None:
            self._watch(process.pid, died)
            return

        async def wait() -> None:
            with suppress(RayError):
                await process.actor.stay.remote()
            died()

        self._watches[process.part] = asyncio.create_task(wait())

    async def _answer(self, work: Any) -> Any:
        """What an actor that is ready answers."""
        return await self._unless_stopped(work, READY_TIMEOUT_S)

    async def _unless_stopped(self, work: Any, timeout_s: float) -> Any:
        """The result of `work`; raise RunAborted if the run is stopped or the time is over first."""
        stopped = asyncio.create_task(self._stop.wait())
        task = asyncio.ensure_future(work)
        done, _ = await asyncio.wait({task, stopped}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if task not in done:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            raise RunAborted("stopped while starting" if done else f"actors were not ready within {timeout_s:g} s")
        return await task


def _in_words(error: BaseException) -> str:
    """What happened, without the traceback that Ray's messages carry."""
    if isinstance(error, RayActorError):
        return "a Ray actor died"
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[-1]}"
