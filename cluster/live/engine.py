"""The live engine: a scenario as Ray actors on real links, one turn per allocator, all with the same arrivals."""

import asyncio
import itertools
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from agents.actor import HostActor
from agents.agent import Adjustment, Terms
from agents.arrivals import Arrival
from agents.host import AgentHost
from agents.uplink import SocketUplink
from allocator.actor import AllocatorActor
from allocator.online.service import Allocator
from cloud.actor import WorkerActor
from cluster.channel_player import play
from cluster.live.interventions import Channel, Squeezer
from cluster.live.placement import ALLOCATOR_CPUS, Placement
from cluster.live.ray_metrics import UplinkMetrics
from cluster.live.ray_session import RaySession
from cluster.processes import StealMeter, children, ended, parent
from cluster.run_folder.controls import Inbox
from cluster.run_folder.result import RunResult, Turn
from cluster.run_folder.timeline import PERIOD_S, Event, Timeline
from cluster.scenario.schema import AllocatorSettings, Scenario
from cluster.wiring import make_allocator, make_host, make_reception, make_terms, make_worker
from models.clock import sleep_until
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
        placement: Placement,
        link: LinkSession,
        report: Report,
    ) -> None:
        self._scenario = scenario
        self._run_dir = run_dir
        self._ray = ray_session
        self._placement = placement
        self._link = link
        self._report = report
        self._stop = asyncio.Event()
        self._inbox = Inbox(run_dir)
        self._epoch_s: float | None = None  # of the turn that is on
        self._hosts: list[ActorHandle] = []
        self._workers: list[ActorHandle] = []
        self._watches: list[asyncio.Task[None]] = []
        self.result = RunResult()

    def stop(self, reason: str) -> None:
        """End the run soon, keeping what was recorded."""
        if not self._stop.is_set():
            self.result.problems.append(reason)
            if self.result.turns and self._epoch_s is not None:
                event = Event(round(time.monotonic() - self._epoch_s, 3), "fault", reason)
                self.result.turns[-1].timeline.happened(event)
            self._stop.set()

    async def run(self) -> RunResult:
        """All turns, or as many as could be had; the journals hold the records."""
        self._watch(self._link.pid, "the link's helper process died")
        for pid in children(os.getpid(), "gcs_server"):
            self._watch(pid, "Ray's GCS died")
        try:
            client = await LinkClient.open(self._link.socket_path)
            before = await client.counters()  # what it took to verify the link
            await self._start_actors()
            for settings in self._scenario.allocators:
                if self._stop.is_set():
                    break
                await self._take_turn(settings, client)
            if not self._stop.is_set():
                asked = [worker.counts.remote() for worker in self._workers]
                counts: asyncio.Future[list[dict[str, int]]] = asyncio.gather(*asked)
                self.result.workers = await self._unless_stopped(counts, READY_TIMEOUT_S)
                self.result.link = (await client.counters()).since(before)
                for kind, actors in (("agents", self._hosts), ("workers", self._workers)):
                    used: asyncio.Future = asyncio.gather(*[actor.memory_mb.remote() for actor in actors])
                    self.result.memory_mb[kind] = await self._unless_stopped(used, READY_TIMEOUT_S)
        except (LinkLost, LinkRefused, ray.exceptions.RayError, RunAborted) as error:
            self.stop(_in_words(error))
        finally:
            for watch in self._watches:
                watch.cancel()
        return self.result

    async def _start_actors(self) -> None:
        """Create all actors, then wait once: they come up side by side."""
        began = time.monotonic()
        s, place, here = self._scenario, self._placement, self._ray
        for number in range(s.cloud.workers):
            listen = partial(_listen, self._link.socket_path, number)
            make = partial(make_worker, s, models=True)
            receive = partial(make_reception, s)
            worker = here.start(WorkerActor, place.worker_cpus, place.worker_gpus, make, receive, listen)
            self._workers.append(worker)
        agent_ids = range(len(s.agent_profiles))
        for first in range(0, len(agent_ids), s.agents_per_actor):
            open_host = partial(_open_host, s, agent_ids[first : first + s.agents_per_actor], self._link.socket_path)
            self._hosts.append(here.start(HostActor, place.agent_cpus, place.agent_gpus, open_host))
        # Workers listen first; agents then connect.
        for actors in (self._workers, self._hosts):
            ready: asyncio.Future[list[int]] = asyncio.gather(*[actor.start.remote() for actor in actors])
            pids = await self._unless_stopped(ready, MODELS_TIMEOUT_S if s.real_models else READY_TIMEOUT_S)
        self._watch(parent(pids[0]), "Ray's raylet died")
        self.result.ready_s = time.monotonic() - began
        self._report(
            f"{len(agent_ids)} agents in {len(self._hosts)} actors and {len(self._workers)} cloud workers ready after "
            f"{self.result.ready_s:.1f} s on a {self._link.kind} link"
        )

    async def _take_turn(self, settings: AllocatorSettings, client: LinkClient) -> None:
        """One allocator's turn, from the first arrival to the last record."""
        s, name = self._scenario, settings.name
        folder = files.turn_journal(self._run_dir, name)
        turn = Turn(name, Timeline(name, settings.policy, s.deadline_ms, folder))
        self.result.turns.append(turn)
        folder.mkdir(parents=True)
        make = partial(_open_allocator, s, settings, self._link.socket_path)
        allocator = self._ray.start(AllocatorActor, ALLOCATOR_CPUS, 0.0, make)
        try:
            await self._unless_stopped(allocator.start.remote(), READY_TIMEOUT_S)
            first = next(iter(s.uplink.channel.play(s.seed)))
            await client.set_channel(first.mbps)
            # The channel has held its first rate before the run begins, and the base station has seen it.
            await allocator.report.remote(first.mbps)
            await allocator.peek.remote(first.mbps)
            arrivals = self._arrivals_by_host()
            self._report(f"allocator {name}: {sum(map(len, arrivals))} requests")
            epoch_s = self._epoch_s = time.monotonic() + START_DELAY_S
            attended = asyncio.create_task(self._attend(settings, turn, first.mbps, client, allocator, epoch_s))
            steal = StealMeter()
            try:
                await self._release(arrivals, allocator, folder, epoch_s, make_terms(s, settings))
            finally:
                attended.cancel()
                turn.stolen = steal.share()
            if not self._stop.is_set():
                turn.solve_ms = await self._unless_stopped(allocator.solve_times_ms.remote(), READY_TIMEOUT_S)
                # What timed out may still be queued there; the next allocator must not pay for it.
                settled = asyncio.gather(*[worker.settle.remote() for worker in self._workers])
                await self._unless_stopped(settled, READY_TIMEOUT_S)
        finally:
            ray.kill(allocator)

    def _arrivals_by_host(self) -> list[list[Arrival]]:
        arrivals: list[list[Arrival]] = [[] for _ in self._hosts]
        for arrival in self._scenario.schedule():
            arrivals[arrival.agent_id // self._scenario.agents_per_actor].append(arrival)
        return arrivals

    async def _release(
        self, arrivals: list[list[Arrival]], allocator: ActorHandle, folder: Path, epoch_s: float, terms: Terms
    ) -> None:
        """Let every host play its agents' arrivals, until all are done or the run is stopped."""
        tags = {"scenario": self._scenario.name, "allocator": folder.name}
        journals = [folder / f"host-{number}.jsonl" for number in range(len(self._hosts))]
        runs = [
            asyncio.ensure_future(host.run.remote(part, allocator, journal, tags, epoch_s, terms))
            for host, part, journal in zip(self._hosts, arrivals, journals, strict=True)
        ]
        stopped = asyncio.create_task(self._stop.wait())
        pending: set[asyncio.Future] = {*runs, stopped}
        while pending - {stopped} and not stopped.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for run in done - {stopped}:
                if error := run.exception():
                    self.stop(_in_words(error))
        stopped.cancel()
        if self._stop.is_set():
            for host in self._hosts:
                host.stop.remote()
            await asyncio.wait(runs, timeout=STOP_TIMEOUT_S)
            for run in runs:
                run.cancelled() or (run.done() and run.exception())  # seen: what happened is in `problems`

    async def _attend(
        self,
        settings: AllocatorSettings,
        turn: Turn,
        first_mbps: float,
        client: LinkClient,
        allocator: ActorHandle,
        epoch_s: float,
    ) -> None:
        """Play the channel, write down how things stand, do what is asked of the run; endless."""
        s = self._scenario
        report: Any = allocator.report.remote
        peek: Any = allocator.peek.remote
        switch: Any = allocator.switch.remote
        channel = Channel(first_mbps, epoch_s, client.set_channel, report, peek, turn.timeline, turn.channel)

        async def adjust(change: Adjustment, agent_id: int | None) -> None:
            await asyncio.gather(*[host.adjust.remote(change, agent_id) for host in self._hosts])

        squeezer = Squeezer(s, settings, self._inbox, channel, turn.timeline, epoch_s, adjust, switch)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(play(s, epoch_s, channel.change, channel.report))
                tasks.create_task(self._look(turn.timeline, client, allocator, epoch_s))
                tasks.create_task(squeezer.obey())
        except* Exception as errors:
            # Whatever it was, the channel stands still from now on, and the run would be worth nothing.
            self.stop(f"the channel: {_in_words(errors.exceptions[0])}")
        finally:
            channel.stop()

    async def _look(self, timeline: Timeline, client: LinkClient, allocator: ActorHandle, epoch_s: float) -> None:
        before_bytes = await client.used_bytes()
        metrics = UplinkMetrics(self._scenario.name, timeline.allocator)
        for number in itertools.count():
            await sleep_until(epoch_s + number * PERIOD_S)
            used_bytes = await client.used_bytes() - before_bytes
            at_s = time.monotonic() - epoch_s
            metrics.show(timeline.take(at_s, used_bytes, await allocator.snapshot.remote()))

    def _watch(self, pid: int, message: str) -> None:
        """End the run when a process that it can't do without has died; Ray itself takes 15 s and more to say so."""

        async def wait() -> None:
            await ended(pid)
            self.stop(message)

        self._watches.append(asyncio.create_task(wait()))

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


async def _open_host(scenario: Scenario, agent_ids: Sequence[int], link_path: str) -> AgentHost:
    client = await LinkClient.open(link_path)
    warm = scenario.uplink.transport.connections == "warm"
    uplinks = {agent_id: SocketUplink(partial(client.connect, agent_id), warm) for agent_id in agent_ids}
    for uplink in uplinks.values():
        await uplink.open(scenario.cloud.workers)
    return make_host(scenario, agent_ids, uplinks.__getitem__, models=True)


async def _listen(link_path: str, worker: int) -> socket.socket:
    client = await LinkClient.open(link_path)
    try:
        return await client.listen(worker)
    finally:
        client.close()


async def _open_allocator(scenario: Scenario, settings: AllocatorSettings, link_path: str) -> Allocator:
    return make_allocator(scenario, settings, await LinkClient.open(link_path))


def _in_words(error: BaseException) -> str:
    """What happened, without the traceback that Ray's messages carry."""
    if isinstance(error, ray.exceptions.ActorDiedError | ray.exceptions.ActorUnavailableError):
        return "a Ray actor died"
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[-1]}"
