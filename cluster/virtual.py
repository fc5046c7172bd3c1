"""An event loop on virtual time: nothing ever waits, the clock jumps to the next thing that is due."""

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any


class Stalled(RuntimeError):
    """Everything waits for something that can't happen any more: a defect of the emulator."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs the live engine's own coroutines on a clock that starts at 0 and takes no time to pass.

    Sockets, subprocesses and threads have no place on it. Two runs of the same program schedule alike.
    """

    punctual = True  # see `models.clock`

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_Jump(self))
        # Timers due within so much are run together; the default is the wall clock's resolution.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now_s

    def jump(self, by_s: float) -> None:
        """Let time pass."""
        self._now_s += by_s


class _Jump(selectors.BaseSelector):
    """Instead of waiting for input until the next timer is due, lets virtual time pass."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stalled("the simulation has nothing left to do, and isn't done")
        if timeout > 0:
            self._loop.jump(timeout)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, -1, events, data)  # the loop's own wake-up pipe

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, -1, 0, None)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}
