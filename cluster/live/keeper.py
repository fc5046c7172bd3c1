"""Starts the processes of a live run, and sees to those that die or don't answer any more."""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from cluster.live.health import until_silent
from cluster.live.other_nodes import OtherNodes
from cluster.live.parts import LiveParts, Process
from cluster.live.pool import Pool
from cluster.processes import ended
from cluster.recovery import Record, Recoveries, silent
from cluster.scenario.events import EventRefused, Part
from cluster.scenario.schema import AllocatorSettings, Scenario
from netem.helper.client import LinkClient, LinkLost, LinkRefused
from netem.helper.session import LinkSession, LinkUnavailable

READY_TIMEOUT_S = 120.0
MODELS_TIMEOUT_S = 900.0  # to load them, and on a GPU to compile how they decode
ALLOCATOR, HELPER, RELAY = Part("allocator"), Part("helper"), Part("relay")
NEEDED = (ALLOCATOR, HELPER, RELAY)  # for any request to get through
IN_A_THREAD = (HELPER, RELAY)
CANT_START = (RayError, LinkUnavailable, LinkLost, LinkRefused, TimeoutError)


class NotStarted(RuntimeError):
    """A part can't be started; the message says which and why."""


@dataclass(frozen=True, slots=True)
class KeptTurn:
    """The turn that is on: its account of deaths and returns, and how it is ended if it can't go on."""

    settings: AllocatorSettings
    account: Recoveries
    lose: Callable[[str], None]


class Keeper:
    """Keeps a run's parts alive: every process is watched by its pid and by heartbeats from its start to its end.

    One that doesn't answer is ended, so that a request can't be answered twice. In a turn, what has died is started
    again by the scenario's `recovery`; between turns it is only noted, since `start_missing` comes next.
    """

    def __init__(self, scenario: Scenario, pool: Pool, parts: LiveParts, link: LinkSession) -> None:
        self._scenario, self._pool, self._parts, self._link = scenario, pool, parts, link
        self._silent_s = scenario.recovery.silent_after_s(with_models=bool(scenario.real_models))
        self._timeout_s = MODELS_TIMEOUT_S if scenario.real_models else READY_TIMEOUT_S
        self._turn: KeptTurn | None = None
        self._revivals: dict[Part, asyncio.Task[Process | None]] = {}
        self.deaths: Counter[Part] = Counter()
        self._take(self._helper())
        if pool.others is not None:
            self._take(self._relay(pool.others))

    async def start_missing(self) -> list[str]:
        """Start the parts that aren't there: all before the first turn, later those that died.

        So every turn begins as the scenario says, whatever happened in the one before. Returns why parts can't be
        started, if any.
        """
        problems = []
        for part in self._missing_link():
            try:
                self._take(await self._start(part))
            except CANT_START as error:
                return [f"{part} can't be started: {in_words(error)}"]
            if part == HELPER:
                await self._parts.relinked()
        workers, hosts = self._missing()
        actors = {part: self._pool.create(part) for part in (*workers, *hosts)}  # they come up side by side
        for group in (workers, hosts):  # workers listen first; hosts then connect
            starting = [self._started(part, actors[part]) for part in group]
            for part, started in zip(group, await asyncio.gather(*starting, return_exceptions=True), strict=True):
                if isinstance(started, Process):
                    self._take(started)
                elif isinstance(started, CANT_START):
                    problems.append(f"{part} can't be started: {in_words(started)}")
                else:
                    raise started
        return problems

    async def begin_turn(self, settings: AllocatorSettings, record: Record, lose: Callable[[str], None]) -> None:
        """Start the turn's allocator, and see to the parts until `end_turn`.

        Args:
            record: writes the timeline; lose: ends the turn, which can't go on, for this reason.

        Raises:
            NotStarted
        """
        self._parts.begin_turn(settings.policy, self._scenario.first_mbps)
        try:
            self._take(await self._start(ALLOCATOR, settings))
        except CANT_START as error:
            raise NotStarted(f"{ALLOCATOR} can't be started: {in_words(error)}") from None
        self._tell_of_lost_workers()
        self._turn = KeptTurn(settings, Recoveries(self._scenario.recovery, record), lose)

    async def end_turn(self) -> None:
        """End the turn's allocator, and start nothing again until the next turn."""
        self._turn = None
        revivals = list(self._revivals.items())
        self._revivals.clear()
        for part, revival in revivals:
            if part not in IN_A_THREAD:
                revival.cancel()
        await asyncio.gather(*[revival for _, revival in revivals], return_exceptions=True)
        if (allocator := self._parts.allocator) is not None:
            self._parts.allocator = None
            if allocator.watch is not None:
                allocator.watch.cancel()
            ray.kill(allocator.actor)

    async def close(self) -> None:
        """Watch nothing any more."""
        await self.end_turn()
        for process in self._parts.living([*self._parts.hosts, *self._parts.workers, self._parts.helper]):
            if process.watch is not None:
                process.watch.cancel()

    async def again(self, process: Process) -> Process | None:
        """What takes the place of a process that is ending; None if nothing does."""
        await process.gone.wait()
        revival = self._revivals.get(process.part)
        if revival is None:
            return None
        await asyncio.wait([revival])
        return None if revival.cancelled() else revival.result()

    def _missing_link(self) -> list[Part]:
        """Helper and relay; the relay ends with the link that it goes by."""
        missing = [HELPER] if self._parts.helper is None else []
        if self._pool.others is not None and (missing or self._parts.relay is None):
            missing.append(RELAY)
        return missing

    def _missing(self) -> tuple[list[Part], list[Part]]:
        """Workers and hosts."""
        workers = [Part("worker", number) for number, there in enumerate(self._parts.workers) if there is None]
        hosts = [self._parts.host(number) for number, there in enumerate(self._parts.hosts) if there is None]
        return workers, hosts

    async def _start(self, part: Part, settings: AllocatorSettings | None = None) -> Process:
        """Raises what `CANT_START` lists."""
        if part == HELPER:
            await asyncio.to_thread(self._link.restart)
            return self._helper()
        if part == RELAY:
            assert self._pool.others is not None
            await asyncio.to_thread(self._pool.others.restart_relay)
            return self._relay(self._pool.others)
        return await self._started(part, self._pool.create(part, settings))

    async def _started(self, part: Part, actor: ActorHandle) -> Process:
        try:
            async with asyncio.timeout(self._timeout_s):
                pid = await actor.start.remote()
        except BaseException:
            ray.kill(actor)  # or it would be there twice
            raise
        process = Process(part, pid, actor, actor.ping.remote, self._pool.elsewhere(part))
        if process.elsewhere is not None and self._pool.others is not None:
            process.node = self._pool.others.name_of(process.elsewhere.node_id)
        return process

    def _helper(self) -> Process:
        async def ping() -> None:
            async with await LinkClient.open(self._link.socket_path) as client:
                await client.used_bytes()

        return Process(HELPER, self._link.pid, None, ping)

    def _relay(self, others: OtherNodes) -> Process:
        return Process(RELAY, others.relay_pid, None, others.ask_relay)

    def _take(self, process: Process) -> None:
        self._parts.put(process.part, process)
        process.watch = asyncio.create_task(self._watch(process))

    async def _watch(self, process: Process) -> None:
        """See to a process when it has ended; end it if it doesn't answer."""
        gone = asyncio.ensure_future(_gone(process))
        silence = asyncio.ensure_future(until_silent(process.ping, self._silent_s))
        cause = "ended"
        try:
            await asyncio.wait({gone, silence}, return_when=asyncio.FIRST_COMPLETED)
            if not gone.done() and silence.result():
                cause = silent(self._silent_s)
                with contextlib.suppress(EventRefused):  # a helper of another user: it may still end by itself
                    process.signal(signal.SIGKILL)
                if process.elsewhere is not None:  # it may be cut off: Ray would tell after a minute
                    ray.kill(process.actor)
                    gone.cancel()
            await asyncio.wait([gone])
        finally:
            gone.cancel()
            silence.cancel()
        self._lost(process, cause)

    def _lost(self, process: Process, cause: str) -> None:
        part, turn = process.part, self._turn
        self.deaths[part] += 1
        self._revivals.pop(part, None)
        if self._parts.get(part) is process:
            self._parts.put(part, None)
        if turn is not None:
            if part.kind == "worker":
                self._tell_allocator("worker_lost", part.number)
            wanted = turn.account.died(part, f"{process.place} {cause}")
            if wanted:
                self._revivals[part] = asyncio.create_task(self._revive(part, turn))
            elif part in NEEDED:
                turn.lose(f"{part} died")
        process.gone.set()

    async def _revive(self, part: Part, turn: KeptTurn) -> Process | None:
        """Start a part again, and have it take up its work. None, once that is recorded, if it can't be started."""
        try:
            settings = turn.settings.model_copy(update={"policy": self._parts.policy})
            process = await self._start(part, settings)
            if part == ALLOCATOR:
                await self._hand_over(process)
            self._take(process)
            if part == HELPER:
                await self._parts.relinked()
        except CANT_START as error:
            turn.account.failed(part, in_words(error))
            if part in NEEDED:
                turn.lose(f"{part} can't be started again: {in_words(error)}")
            return None
        if part.kind == "worker":
            self._tell_allocator("worker_restored", part.number)
        turn.account.back(part)
        return process

    async def _hand_over(self, allocator: Process) -> None:
        """Tell a new allocator what the one before knew: channel and workers; the hosts tell it their requests."""
        told, actor = self._parts.told, allocator.actor
        await actor.recall.remote(list(told.reports_mbps), told.peek_mbps)
        self._parts.put(ALLOCATOR, allocator)
        self._tell_of_lost_workers()
        for host in self._parts.living(self._parts.hosts):
            host.actor.replace_allocator.remote(actor)

    def _tell_of_lost_workers(self) -> None:
        for number, worker in enumerate(self._parts.workers):
            if worker is None:
                self._tell_allocator("worker_lost", number)

    def _tell_allocator(self, method: str, *arguments: Any) -> None:
        if self._parts.allocator is not None:
            getattr(self._parts.allocator.actor, method).remote(*arguments)


async def _gone(process: Process) -> None:
    """Return when a process has ended; if it is on another node, when Ray tells so."""
    if process.elsewhere is None:
        await ended(process.pid)
    else:
        with contextlib.suppress(RayError):
            await process.actor.stay.remote()


def in_words(error: BaseException) -> str:
    """What happened, without the traceback that Ray's messages carry."""
    if isinstance(error, RayActorError):
        return "its process died"
    if isinstance(error, TimeoutError) and not str(error):
        return "it was not ready in time"
    if isinstance(error, RuntimeError) and not isinstance(error, RayError):
        return str(error)  # ours, for people
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[-1]}"


def left(parts: LiveParts, spread: bool) -> Sequence[str]:
    """What a turn can't be played without and isn't there, in words."""
    lists = [("host of agents", parts.hosts), ("cloud worker", parts.workers), ("helper of the link", [parts.helper])]
    if spread:
        lists.append(("relay", [parts.relay]))
    return [f"no {name} is left" for name, processes in lists if not parts.living(processes)]
