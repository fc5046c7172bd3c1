"""Events of a turn: changes that a scenario schedules or the dashboard asks for, and faults.

Each event is one class; `EVENTS` is their registry. Both engines play them through the two protocols below.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, ClassVar, Literal, NamedTuple, Protocol, Self, get_args

import numpy as np
from pydantic import Field, model_validator

from agents.agent import Adjustment
from allocator.online.service import Snapshot
from configs.settings import Settings
from netem.channels import MIN_CHANNEL_MBPS
from netem.wire import MAX_RATE_MBPS

MAX_STEPS = 100
LONGEST_S = 3600.0
PartKind = Literal["host", "worker", "allocator", "helper", "relay"]
EventKind = Literal["intervention", "fault", "recovery"]


class Part(NamedTuple):
    """A process of a run. `number` is that of a worker, or of any agent of a host."""

    kind: PartKind
    number: int = 0

    def __str__(self) -> str:
        names = {
            "host": f"the host of agent {self.number}",
            "worker": f"worker {self.number}",
            "allocator": "the allocator",
            "helper": "the link's helper process",
            "relay": "the station's relay",
        }
        return names[self.kind]


class EventRefused(ValueError):
    """The event can't be played; the message says why in one line."""


class ChannelParts(Protocol):
    """The link's true rate, and what the allocator hears of it. Rates are link-layer Mbit/s."""

    async def set_channel(self, mbps: float) -> None:
        """Change the true rate of the shared hop."""
        ...

    async def report(self, mbps: float) -> None:
        """Tell the allocator the mean rate that the base station measured over the last interval."""
        ...

    async def peek(self, mbps: float) -> None:
        """Tell the allocator the rate that begins now (for estimators that look ahead)."""
        ...


class Parts(ChannelParts, Protocol):
    """The parts of a turn, as an engine implements them. What is frozen must not hold up its caller."""

    async def adjust(self, change: Adjustment, agent_id: int | None = None) -> None:
        """Change settings of one agent, or of all."""
        ...

    async def switch(self, policy: str) -> None:
        """Give the allocator another policy."""
        ...

    async def kill(self, part: Part) -> None:
        """End a process without warning. Raises EventRefused if it has ended, or can't be killed."""
        ...

    async def freeze(self, part: Part) -> None:
        """Stop a process from running until `thaw`; nothing sent to it is lost. Raises EventRefused as `kill` does."""
        ...

    async def thaw(self, part: Part) -> None:
        """Let a frozen process run again. Raises EventRefused if it has died, or is another one by now."""
        ...

    async def cut(self, agent_id: int) -> None:
        """Let nothing through an agent's own link, in either direction, until `restore`."""
        ...

    async def restore(self, agent_id: int) -> None:
        """Let an agent's link carry again; no effect on links that aren't cut."""
        ...

    async def snapshot(self) -> Snapshot:
        """The allocator's state; the last one known while it is frozen."""
        ...

    async def used_bytes(self) -> float:
        """Wire bytes that the shared hop has carried so far."""
        ...


class EventTarget(Protocol):
    """The turn that events act on. See `cluster.turn.TurnContext`."""

    @property
    def parts(self) -> Parts: ...

    def squeeze(self, steps: "list[UplinkStep]") -> None:
        """Play these rates instead of the scenario's channel, then the scenario's again."""
        ...

    async def set_deadline(self, ms: float) -> None:
        """Of the requests that are released from now on."""
        ...

    async def change_policy(self, policy: str) -> None:
        """Decide by another policy from now on. Raises EventRefused if that can't serve the scenario."""
        ...

    async def pause(self, agent_id: int, paused: bool) -> None:
        """Reject an agent's requests, or serve them again."""
        ...

    def undo_after(self, for_s: float | None, name: str, undo: Callable[[], Awaitable[None]]) -> None:
        """Call `undo` after `for_s` seconds (None: when the turn ends), and record it under `name`."""
        ...

    async def undo(self, name: str) -> None:
        """Do now what `undo_after` has for later. Raises EventRefused if there is nothing of that name."""
        ...


class TurnEvent(Settings):
    """Base of events.

    Attributes:
        at_s: when, in seconds since the turn's start. A scenario's event has this or `between`, the dashboard's
            neither: they are played at once.
        between: `count` random times in this range instead, drawn with the scenario's seed.
    """

    is_fault: ClassVar[bool] = False

    at_s: float | None = Field(default=None, ge=0, description="when, since the turn's start; or give `between`")
    between: tuple[Annotated[float, Field(ge=0)], float] | None = Field(
        default=None, description="random times between these two, in seconds since the turn's start"
    )
    count: int = Field(default=1, ge=1, le=1000, description="how many random times, with `between`")

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.between is not None and self.between[1] <= self.between[0]:
            raise ValueError(f"between {list(self.between)}: the second time must be later than the first")
        if self.at_s is not None and self.between is not None:
            raise ValueError("has both at_s and between")
        if self.count > 1 and self.between is None:
            raise ValueError("count needs between")
        return self

    def times_s(self, rng: np.random.Generator) -> list[float]:
        """When the event is played, in any order."""
        if self.between is not None:
            return [float(at_s) for at_s in rng.uniform(*self.between, self.count)]
        return [] if self.at_s is None else [self.at_s]

    def problem(self, agents: int, workers: int) -> str | None:
        """Why the event can't be played among so many agents and workers."""
        return None

    async def apply(self, turn: EventTarget) -> None:
        """Play the event. Raises EventRefused."""
        raise NotImplementedError


class UplinkStep(Settings):
    """The uplink's true rate for a while, link-layer Mbit/s."""

    mbps: float = Field(ge=MIN_CHANNEL_MBPS, le=MAX_RATE_MBPS, description="the true rate")
    for_s: float = Field(gt=0, le=LONGEST_S, description="how long")


class SetUplink(TurnEvent):
    """Play these rates instead of the scenario's channel, which then goes on as if nothing had happened."""

    kind: Literal["uplink"] = "uplink"
    steps: list[UplinkStep] = Field(min_length=1, max_length=MAX_STEPS, description="rates, one after the other")

    def __str__(self) -> str:
        return "uplink: " + ", then ".join(f"{step.mbps:g} Mbit/s for {step.for_s:g} s" for step in self.steps)

    async def apply(self, turn: EventTarget) -> None:
        turn.squeeze(self.steps)


class SetDeadline(TurnEvent):
    """Deadline of the requests that are released from now on."""

    kind: Literal["deadline"] = "deadline"
    ms: float = Field(gt=0, le=3_600_000, description="the new deadline, in ms")

    def __str__(self) -> str:
        return f"deadline: {self.ms:g} ms"

    async def apply(self, turn: EventTarget) -> None:
        await turn.set_deadline(self.ms)


class SetAllocator(TurnEvent):
    """Decide by another policy from now on; the turn keeps its name."""

    kind: Literal["allocator"] = "allocator"
    policy: str = Field(max_length=200, description="the new policy, as in `allocators`")

    def __str__(self) -> str:
        return f"allocator: {self.policy}"

    async def apply(self, turn: EventTarget) -> None:
        await turn.change_policy(self.policy)


class _AgentEvent(TurnEvent):
    agent: int = Field(ge=0, description="its number, from 0 on")

    def problem(self, agents: int, workers: int) -> str | None:
        return None if self.agent < agents else f"no agent {self.agent}; there are {agents}, from 0 on"


class PauseAgent(_AgentEvent):
    """While an agent is paused, its requests are rejected, with that reason."""

    kind: Literal["pause"] = "pause"
    paused: bool = Field(description="true: reject its requests; false: serve them again")

    def __str__(self) -> str:
        return f"agent {self.agent}: {'paused' if self.paused else 'goes on'}"

    async def apply(self, turn: EventTarget) -> None:
        await turn.pause(self.agent, self.paused)


class CutLink(_AgentEvent):
    """An agent's link carries nothing, in either direction, for a time or until it is restored."""

    is_fault = True
    kind: Literal["cut"] = "cut"
    for_s: float | None = Field(
        default=None, gt=0, le=LONGEST_S, description="how long; default: until it is restored, or the turn ends"
    )

    def __str__(self) -> str:
        return f"cut the link of agent {self.agent}" + (f" for {self.for_s:g} s" if self.for_s else "")

    async def apply(self, turn: EventTarget) -> None:
        await turn.parts.cut(self.agent)
        turn.undo_after(self.for_s, str(RestoreLink(agent=self.agent)), lambda: turn.parts.restore(self.agent))


class RestoreLink(_AgentEvent):
    """A link that was cut carries again."""

    is_fault = True
    kind: Literal["restore"] = "restore"

    def __str__(self) -> str:
        return f"restore the link of agent {self.agent}"

    async def apply(self, turn: EventTarget) -> None:
        await turn.undo(str(self))


class _PartEvent(TurnEvent):
    part: PartKind = Field(description="which kind of process")
    number: int = Field(default=0, ge=0, description="of the worker, or of an agent of the host")

    @property
    def target(self) -> Part:
        return Part(self.part, self.number)

    def problem(self, agents: int, workers: int) -> str | None:
        there = {"host": agents, "worker": workers}.get(self.part, 1)
        if self.number < there:
            return None
        if self.part not in ("host", "worker"):
            return f"number {self.number}: there is one {self.part}"
        kind = "agent" if self.part == "host" else self.part
        return f"no {kind} {self.number}; there are {there}, from 0 on"


class Kill(_PartEvent):
    """End a process without warning."""

    is_fault = True
    kind: Literal["kill"] = "kill"

    def __str__(self) -> str:
        return f"kill {self.target}"

    async def apply(self, turn: EventTarget) -> None:
        await turn.parts.kill(self.target)


class Freeze(_PartEvent):
    """Stop a process from running for a time."""

    is_fault = True
    kind: Literal["freeze"] = "freeze"
    for_s: float = Field(gt=0, le=LONGEST_S, description="how long")

    def __str__(self) -> str:
        return f"freeze {self.target} for {self.for_s:g} s"

    async def apply(self, turn: EventTarget) -> None:
        await turn.parts.freeze(self.target)
        turn.undo_after(self.for_s, f"{self.target} runs again", lambda: turn.parts.thaw(self.target))


AnyEvent = Annotated[
    SetUplink | SetDeadline | SetAllocator | PauseAgent | CutLink | RestoreLink | Kill | Freeze,
    Field(discriminator="kind"),
]
EVENTS: dict[str, type[TurnEvent]] = {cls.model_fields["kind"].default: cls for cls in get_args(get_args(AnyEvent)[0])}


def schedule(events: Iterable[TurnEvent], rng: np.random.Generator) -> list[tuple[float, TurnEvent]]:
    """(seconds since the turn's start, event) of all events, in order of time."""
    timed = [(at_s, event) for event in events for at_s in event.times_s(rng)]
    return sorted(timed, key=lambda entry: entry[0])
