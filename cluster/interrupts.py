"""SIGINT and SIGTERM while something runs: they end it with what there is, in whatever thread it runs."""

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def ignore() -> None:
    """What an interrupt does while results are written: that takes seconds, and something must come of it."""


class Interrupts(AbstractContextManager["Interrupts"]):
    """Takes both signals while it is entered, and gives them back to whom they belonged.

    Only a process's main thread can take signals; entered in another one, it takes what `interrupt` is told. Shells
    start background jobs deaf to SIGINT, so this also restores that.
    """

    def __init__(self) -> None:
        self._come = threading.Event()
        self._then: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._signalled) for signum in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    @property
    def come(self) -> bool:
        """Whether there was one."""
        return self._come.is_set()

    def check(self) -> None:
        """Raises KeyboardInterrupt if one has come: libraries that are starting up may have swallowed the first."""
        if self.come:
            raise KeyboardInterrupt

    def hand_to(self, then: Callable[[], object]) -> None:
        """From now on an interrupt calls `then`, at once if one has come; before the first call it raises.

        Args:
            then: may be called in a signal handler, in the main thread.
        """
        self._then = then
        if self.come:
            then()

    def interrupt(self) -> None:
        """What a signal does, without one."""
        self._come.set()
        if self._then is not None:
            self._then()

    def _signalled(self, signum: int, frame: FrameType | None) -> None:
        self.interrupt()
        if self._then is None:
            raise KeyboardInterrupt
