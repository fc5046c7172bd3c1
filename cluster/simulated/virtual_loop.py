"""An event loop on virtual time: instead of waiting, the clock jumps to the next timer."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from typing import Any


class Stalled(RuntimeError):
    """Deadlock: tasks are waiting, but no callback or timer is left. A defect of the emulator."""


class _Handle:
    """A scheduled callback; None once cancelled."""

    __slots__ = ("args", "callback", "context")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = context

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs the live engine's coroutines on a virtual clock that starts at 0.

    Timers with the same due time run in the order of scheduling; `call_soon` callbacks run before any further timer. So
    scheduling is deterministic.

    Without support for sockets, subprocesses and threads it is several times faster than asyncio's own loop, whose
    overhead would dominate a long simulation.
    """

    punctual = True  # see `models.clock`

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._soon: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._timer_count = 0
        self._halted = False

    def time(self) -> float:
        """Virtual seconds since the loop was created."""
        return self._now_s

    # Any: asyncio's own annotations (TypeVarTuples, richer handles) are stricter than this loop needs.
    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        handle = _Handle(callback, args, context or contextvars.copy_context())
        self._soon.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        return self.call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        handle = _Handle(callback, args, context or contextvars.copy_context())
        self._timer_count += 1
        heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def stop(self) -> None:
        self._halted = True

    def run_forever(self) -> None:
        """Run until stopped.

        Raises:
            Stalled: nothing is left to run.
        """
        self._halted = False
        soon, timers = self._soon, self._timers
        with _running(self):
            while not self._halted:
                if soon:
                    handle = soon.popleft()
                elif timers:
                    when, _, handle = heappop(timers)
                    if handle.callback is not None and when > self._now_s:
                        self._now_s = when
                else:
                    raise Stalled("the simulation is deadlocked: nothing is scheduled, but it hasn't finished")
                if handle.callback is not None:
                    try:
                        handle.context.run(handle.callback, *handle.args)
                    except Exception as error:
                        self.call_exception_handler({"message": f"in {handle.callback}", "exception": error})


@contextmanager
def _running(loop: VirtualLoop) -> Iterator[None]:
    """Register the loop for `asyncio.get_running_loop()`, as every event loop must."""
    asyncio._set_running_loop(loop)
    try:
        yield
    finally:
        asyncio._set_running_loop(None)
