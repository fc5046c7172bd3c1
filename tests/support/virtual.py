"""Virtual time, with and without sockets: nothing waits, so a busy machine changes no moment."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from cluster.simulated.virtual_loop import VirtualLoop

T = TypeVar("T")


def virtually(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of `main()`, run on a loop of its own whose clock is virtual."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


class SocketLoop(asyncio.SelectorEventLoop):
    """Real sockets on a virtual clock, which moves only when no socket has anything to say.

    Both ends of each connection have to be on this loop: then bytes are there as soon as they are sent. A step of the
    loop takes a microsecond, so that what takes steps takes time. Threads have no place here.
    """

    STEP_S = 1e-6
    # Real time before the clock moves: the kernel hands over what goes through the loopback interface within the call
    # that sends it, or soon after.
    PATIENCE_S = 0.002

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self._now_s

    def pass_s(self, duration_s: float) -> None:
        """Let virtual time pass."""
        self._now_s += duration_s


class PatientLoop(SocketLoop):
    """The same where small socket buffers run full: then the kernel delays acknowledgements, by up to 40 ms."""

    PATIENCE_S = 0.06


class _Selector(selectors.DefaultSelector):  # type: ignore[valid-type, misc]
    """Waits for sockets a moment, then lets the loop's clock pass instead."""

    def __init__(self, loop: SocketLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        self._loop.pass_s(self._loop.STEP_S)
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        ready = super().select(None if timeout is None else self._loop.PATIENCE_S)
        if not ready and timeout is not None:
            self._loop.pass_s(timeout)
        return ready
