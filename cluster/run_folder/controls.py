"""Interventions in a live run: what a dashboard may ask for, and the file in the run folder through which it asks.

A file, because whoever may write into the run folder may do all of this anyway, and nobody else can.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cluster.run_folder.jsonl import Tail
from cluster.scenario.explain import located
from reports import files

MAX_LINE_BYTES = 16_384
MAX_STEPS = 100


class _Control(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class UplinkStep(_Control):
    """The uplink's true rate for a while, link-layer Mbit/s."""

    mbps: float = Field(ge=0.01, le=10_000)
    for_s: float = Field(gt=0, le=3600)


class SetUplink(_Control):
    """Play these rates instead of the scenario's channel, which goes on after them as if nothing had been."""

    kind: Literal["uplink"] = "uplink"
    steps: list[UplinkStep] = Field(min_length=1, max_length=MAX_STEPS)

    def __str__(self) -> str:
        return "uplink: " + ", then ".join(f"{step.mbps:g} Mbit/s for {step.for_s:g} s" for step in self.steps)


class SetDeadline(_Control):
    """Deadline of the requests that are released from now on."""

    kind: Literal["deadline"] = "deadline"
    ms: float = Field(gt=0, le=3_600_000)

    def __str__(self) -> str:
        return f"deadline: {self.ms:g} ms"


class SetAllocator(_Control):
    """Decide by another policy from now on; the turn keeps its name."""

    kind: Literal["allocator"] = "allocator"
    policy: str = Field(max_length=200)

    def __str__(self) -> str:
        return f"allocator: {self.policy}"


class PauseAgent(_Control):
    """While an agent is paused, its requests are rejected, with that reason."""

    kind: Literal["pause"] = "pause"
    agent: int = Field(ge=0)
    paused: bool

    def __str__(self) -> str:
        return f"agent {self.agent}: {'paused' if self.paused else 'goes on'}"


Control = Annotated[SetUplink | SetDeadline | SetAllocator | PauseAgent, Field(discriminator="kind")]
_CONTROL: TypeAdapter[Control] = TypeAdapter(Control)


class BadControl(ValueError):
    """What was asked for can't be; the message says why in a line."""


def parse(text: str | bytes) -> Control:
    """A control of its JSON.

    Raises:
        BadControl: it isn't one.
    """
    if len(text) > MAX_LINE_BYTES:
        raise BadControl(f"more than {MAX_LINE_BYTES:,} bytes")
    try:
        return _CONTROL.validate_json(text)
    except ValidationError as error:
        raise BadControl(located(error, _given(text), Control)) from None


def _given(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None  # the validation error says so


def ask(run_dir: Path, control: Control) -> None:
    """Have a live run do this soon. One write, so that lines of several askers don't mix."""
    line = control.model_dump_json().encode() + b"\n"
    file = os.open(run_dir / files.CONTROLS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


class Inbox:
    """Reads the controls of a run as they come."""

    def __init__(self, run_dir: Path) -> None:
        self._tail = Tail(run_dir / files.CONTROLS)

    def read(self) -> list[Control | BadControl]:
        """The controls since the last call, with an error in the place of each line that isn't one."""
        found: list[Control | BadControl] = []
        for line in self._tail.lines():
            try:
                found.append(parse(line))
            except BadControl as error:
                found.append(error)
        return found
