"""Events that a dashboard asks a live run for, and the file in the run folder through which it asks.

A file, because any user who can write into the run folder can change the run anyway, and no other user can.
"""

import json
import os
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.run_folder.jsonl import Tail
from cluster.scenario.events import AnyEvent, EventRefused, TurnEvent
from cluster.scenario.explain import located
from reports import files

MAX_LINE_BYTES = 16_384
_EVENT: TypeAdapter[TurnEvent] = TypeAdapter(AnyEvent)


def parse(text: str | bytes) -> TurnEvent:
    """An event to be played at once, of its JSON.

    Raises:
        EventRefused: it isn't one.
    """
    if len(text) > MAX_LINE_BYTES:
        raise EventRefused(f"more than {MAX_LINE_BYTES:,} bytes")
    try:
        event = _EVENT.validate_json(text)
    except ValidationError as error:
        raise EventRefused(located(error, _given(text), AnyEvent)) from None
    if event.at_s is not None or event.between is not None:
        raise EventRefused("at_s, between: only a scenario's events have times; this one is played at once")
    return event


def _given(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None  # the validation error says so


def ask(run_dir: Path, event: TurnEvent) -> None:
    """Have a live run do this soon. One write, so that lines of several askers don't mix."""
    line = event.model_dump_json(exclude={"at_s", "between", "count"}).encode() + b"\n"
    file = os.open(run_dir / files.CONTROLS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


class Inbox:
    """Reads the controls of a run as they come."""

    def __init__(self, run_dir: Path) -> None:
        self._tail = Tail(run_dir / files.CONTROLS)

    def read(self) -> list[TurnEvent | EventRefused]:
        """The events since the last call, with an error in the place of each line that isn't one."""
        found: list[TurnEvent | EventRefused] = []
        for line in self._tail.lines():
            try:
                found.append(parse(line))
            except EventRefused as error:
                found.append(error)
        return found
