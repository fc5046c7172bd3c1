"""One allocator's turn, on either clock: its channel, its timeline, and the events that are played in it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from agents.agent import Adjustment
from allocator.policies import POLICIES, STATIC_PREFIX
from cluster.channel_player import ChannelPlayer
from cluster.run_folder.controls import Inbox
from cluster.run_folder.result import Turn
from cluster.run_folder.timeline import PERIOD_S, Event, Moment
from cluster.scenario.events import EventKind, EventRefused, Parts, TurnEvent, UplinkStep
from cluster.scenario.schema import AllocatorSettings, Scenario
from cluster.wiring import make_terms
from models.clock import now_s, sleep_until

POLL_S = 0.1


class TurnContext:
    """Plays a turn's channel and events, and writes its timeline. Implements `cluster.scenario.events.EventTarget`.

    Args:
        parts: what the events act on.
        epoch_s: the turn's start on the event loop's clock.
        inbox: what the dashboard asks for.
        shown: is given each moment of the timeline.

    Attributes:
        failed: ends only by an error, with which the turn can't go on: the channel would stand still.
    """

    def __init__(
        self,
        scenario: Scenario,
        settings: AllocatorSettings,
        turn: Turn,
        parts: Parts,
        epoch_s: float,
        inbox: Inbox | None = None,
        shown: Callable[[Moment], None] | None = None,
    ) -> None:
        self.parts = parts
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._scenario, self._settings = scenario, settings
        self._turn, self._timeline = turn, turn.timeline
        self._epoch_s = epoch_s
        self._inbox, self._shown = inbox, shown
        self._channel = ChannelPlayer(scenario.first_mbps, epoch_s, parts, turn, self.spawn)
        self._tasks: set[asyncio.Task[None]] = set()
        self._undos: dict[str, tuple[Callable[[], Awaitable[None]], asyncio.Task[None] | None]] = {}

    def start(self) -> None:
        """Begin to play; `end` ends it."""
        s = self._scenario
        self.spawn(self._channel.play(s.uplink.channel.play(s.seed), s.uplink.report_s))
        self.spawn(self._look())
        if planned := s.event_schedule():
            self.spawn(self._play(planned))
        if self._inbox is not None:
            self.spawn(self._read(self._inbox))

    async def end(self) -> None:
        """Play no more, and undo what would be undone later: the next turn begins as the scenario says."""
        for task in list(self._tasks):
            task.cancel()
        undos = [undo() for undo, _ in self._undos.values()]
        self._undos.clear()
        await asyncio.gather(*undos, return_exceptions=True)  # a part that has ended can't be undone to
        if not self.failed.done():
            self.failed.cancel()

    def watch(self, task: asyncio.Task[None]) -> None:
        """The turn fails if this task ends by an error."""
        task.add_done_callback(self._ended)

    def record(self, text: str, kind: EventKind = "intervention") -> None:
        """Write down an event of this moment."""
        self._timeline.happened(Event(round(now_s() - self._epoch_s, 3), kind, text))

    def squeeze(self, steps: list[UplinkStep]) -> None:
        """See `EventTarget`, also for the methods that follow."""
        self._channel.squeeze(steps)

    async def set_deadline(self, ms: float) -> None:
        await self.parts.adjust(Adjustment(deadline_ms=ms))
        self._timeline.deadline_ms = ms

    async def change_policy(self, policy: str) -> None:
        # A scenario's author may name any class to import; a request that comes in over the network may not.
        known = {*POLICIES, *self._scenario.policies}
        if policy not in known and not policy.startswith(STATIC_PREFIX):
            raise EventRefused(f"allocator {policy}: not one of {', '.join(sorted(known))}, {STATIC_PREFIX}<mode>")
        settings = self._settings.model_copy(update={"policy": policy})
        if problem := self._scenario.refuses(settings):
            raise EventRefused(f"allocator {policy}: {problem}")
        await self.parts.switch(policy)
        await self.parts.adjust(Adjustment(terms=make_terms(self._scenario, settings)))
        self._timeline.policy = policy

    async def pause(self, agent_id: int, paused: bool) -> None:
        await self.parts.adjust(Adjustment(paused=paused), agent_id)
        (self._timeline.paused.add if paused else self._timeline.paused.discard)(agent_id)

    def undo_after(self, for_s: float | None, name: str, undo: Callable[[], Awaitable[None]]) -> None:
        async def later(for_s: float) -> None:
            await sleep_until(now_s() + for_s)
            self._undos[name] = undo, None  # `undo` must not cancel this task
            with contextlib.suppress(EventRefused):  # the part has died meanwhile, or is another one by now
                await self.undo(name)
                self.record(name, "fault")

        self._forget(name)
        self._undos[name] = undo, None if for_s is None else self.spawn(later(for_s))

    async def undo(self, name: str) -> None:
        if (undo := self._forget(name)) is None:
            raise EventRefused(f"{name}: nothing to undo")
        await undo()

    def _forget(self, name: str) -> Callable[[], Awaitable[None]] | None:
        undo, timer = self._undos.pop(name, (None, None))
        if timer is not None:
            timer.cancel()
        return undo

    async def _play(self, planned: list[tuple[float, TurnEvent]]) -> None:
        for at_s, event in planned:
            await sleep_until(self._epoch_s + at_s)
            await self._run(event)

    async def _read(self, inbox: Inbox) -> None:
        while True:
            for asked in inbox.read():
                await self._run(asked)
            await asyncio.sleep(POLL_S)

    async def _run(self, event: TurnEvent | EventRefused) -> None:
        """Play an event. Faults are recorded before they have an effect, interventions once they have it all."""
        try:
            if isinstance(event, EventRefused):
                raise event
            if problem := event.problem(len(self._scenario.agent_profiles), self._scenario.cloud.workers):
                raise EventRefused(problem)
            if event.is_fault:
                self.record(str(event), "fault")
            await event.apply(self)
            if not event.is_fault:
                self.record(str(event))
        except EventRefused as error:
            self.record(f"refused: {error}")

    async def _look(self) -> None:
        """Write the timeline; what the link carried before the turn doesn't count."""
        before_bytes = await self.parts.used_bytes()
        number = 0
        while True:
            await sleep_until(self._epoch_s + number * PERIOD_S)
            used_bytes = await self.parts.used_bytes() - before_bytes
            snapshot = await self.parts.snapshot()
            at_s = now_s() - self._epoch_s
            moment = self._timeline.take(at_s, used_bytes, snapshot)
            if self._shown is not None:
                self._shown(moment)
            number = max(number, int(at_s / PERIOD_S)) + 1  # moments that a frozen part has held up are left out

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine until the turn ends, which fails with it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        self.watch(task)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.failed.done():
            self.failed.set_exception(error)
