"""Doing to a live run what was asked of it, until the turn ends: another uplink, deadline, policy, a paused agent."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from agents.agent import Adjustment
from allocator.policies import POLICIES, STATIC_PREFIX, make_policy
from cluster.channel_player import ChannelLog
from cluster.run_folder.controls import (
    BadControl,
    Control,
    Inbox,
    PauseAgent,
    SetAllocator,
    SetDeadline,
    SetUplink,
    UplinkStep,
)
from cluster.run_folder.timeline import Event, Timeline
from cluster.scenario.schema import AllocatorSettings, Scenario
from cluster.wiring import make_terms
from models.clock import now_s, sleep_until
from netem.channels import RateChange

POLL_S = 0.1


class Channel:
    """The uplink's true rate: the scenario's, unless and as long as somebody squeezes it.

    Args:
        apply: sets the link's rate; report, peek: tell the allocator. See `uplink_events.play`.
        log: of every rate that held, whoever asked for it.
    """

    def __init__(
        self,
        first_mbps: float,
        epoch_s: float,
        apply: Callable[[float], Awaitable[Any]],
        report: Callable[[float], Awaitable[Any]],
        peek: Callable[[float], Awaitable[Any]],
        timeline: Timeline,
        log: ChannelLog,
    ) -> None:
        self._planned_mbps = first_mbps
        self._epoch_s = epoch_s
        self._apply, self._report, self._peek = apply, report, peek
        self._timeline = timeline
        self._log = log
        self._squeezed: asyncio.Task[None] | None = None
        self._touched = False  # since the last report
        self._carried_mbit, self._since_s, self._reported_s = 0.0, epoch_s, epoch_s
        timeline.channel_mbps = first_mbps

    async def change(self, event: RateChange) -> None:
        """The scenario's channel has a new rate."""
        self._planned_mbps = event.mbps
        if self._squeezed is None:
            await self._set(event.mbps, event.at_s)

    async def report(self, mean_mbps: float) -> None:
        """The base station has measured the scenario's mean rate; the squeezed one's, if there was one."""
        self._account()
        if self._touched:
            mean_mbps = self._carried_mbit / max(self._since_s - self._reported_s, 1e-9)
        self._touched = self._squeezed is not None
        self._carried_mbit, self._reported_s = 0.0, self._since_s
        await self._report(mean_mbps)

    def squeeze(self, steps: list[UplinkStep]) -> None:
        """Play these rates from now on, then the scenario's again; replaces what is being played so."""
        self.stop()
        self._squeezed = asyncio.create_task(self._play(steps))

    def stop(self) -> None:
        """Play no more of it."""
        if self._squeezed is not None:
            self._squeezed.cancel()

    def check(self) -> None:
        """Raises what kept it from being played."""
        if self._squeezed is not None and self._squeezed.done() and not self._squeezed.cancelled():
            self._squeezed.result()

    async def _play(self, steps: list[UplinkStep]) -> None:
        until_s = now_s()
        for step in steps:
            await self._set(step.mbps, until_s - self._epoch_s)
            until_s += step.for_s
            await sleep_until(until_s)
        self._squeezed = None
        await self._set(self._planned_mbps, until_s - self._epoch_s)

    async def _set(self, mbps: float, at_s: float) -> None:
        if at_s > 0:  # the first rate is in force already
            await self._apply(mbps)
            self._account()
            self._touched |= self._squeezed is not None
            await self._peek(mbps)
        self._timeline.channel_mbps = mbps
        self._log.append((at_s, now_s() - self._epoch_s, mbps))

    def _account(self) -> None:
        at_s = now_s()
        self._carried_mbit += self._timeline.channel_mbps * (at_s - self._since_s)
        self._since_s = at_s


class Squeezer:
    """Takes what comes into a run's inbox and does it to the turn that is on.

    Args:
        adjust: tells agents (all, or one) what changes for them; switch: gives the allocator another policy.
    """

    def __init__(
        self,
        scenario: Scenario,
        settings: AllocatorSettings,
        inbox: Inbox,
        channel: Channel,
        timeline: Timeline,
        epoch_s: float,
        adjust: Callable[[Adjustment, int | None], Awaitable[Any]],
        switch: Callable[[Any], Awaitable[Any]],
    ) -> None:
        self._scenario, self._settings = scenario, settings
        self._inbox, self._channel, self._timeline, self._epoch_s = inbox, channel, timeline, epoch_s
        self._adjust, self._switch = adjust, switch

    async def obey(self) -> None:
        """Do what is asked, as it comes; endless."""
        while True:
            self._channel.check()
            for asked in self._inbox.read():
                text = str(asked)
                try:
                    if isinstance(asked, BadControl):
                        raise asked
                    await self._do(asked)
                except BadControl as error:
                    text = f"refused: {error}"
                self._timeline.happened(Event(round(now_s() - self._epoch_s, 3), "intervention", text))
            await asyncio.sleep(POLL_S)

    async def _do(self, asked: Control) -> None:
        """Raises BadControl if the run can't do that."""
        timeline = self._timeline
        match asked:
            case SetUplink():
                self._channel.squeeze(asked.steps)
            case SetDeadline():
                await self._adjust(Adjustment(deadline_ms=asked.ms), None)
                timeline.deadline_ms = asked.ms
            case PauseAgent():
                agents = len(self._scenario.agent_profiles)
                if asked.agent >= agents:
                    raise BadControl(f"no agent {asked.agent}; there are {agents}, from 0 on")
                await self._adjust(Adjustment(paused=asked.paused), asked.agent)
                (timeline.paused.add if asked.paused else timeline.paused.discard)(asked.agent)
            case SetAllocator():
                await self._change_policy(asked.policy)

    async def _change_policy(self, policy: str) -> None:
        known = {*POLICIES, *(each.policy for each in self._scenario.allocators)}
        if policy not in known and not policy.startswith(
            STATIC_PREFIX
        ):  # the scenario's author may name any code to run, a control may not
            raise BadControl(f"allocator {policy}: not one of {', '.join(sorted(known))}, {STATIC_PREFIX}<mode>")
        settings = self._settings.model_copy(update={"policy": policy})
        if problem := self._scenario.refuses(settings):
            raise BadControl(f"allocator {policy}: {problem}")
        await self._switch(partial(make_policy, policy))
        await self._adjust(Adjustment(terms=make_terms(self._scenario, settings)), None)
        self._timeline.policy = policy
