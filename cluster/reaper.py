"""Ends what a run's own Ray cluster leaves behind, when the driver is gone: however it ended.

Ray's processes watch one another, but some take half a minute to notice that all others are dead. This small process
holds the reading end of a pipe whose writing end only the driver has. When the pipe closes, it ends, by its id, every
process of the run: those that inherited the run's mark in their environment. It imports nothing that takes time.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from types import TracebackType

MARK = "SCOUT_RUN"
GRACE_S = 0.5
PATIENCE_S = 10.0


def marked(mark: str) -> list[int]:
    """Processes (other than this one) that were started with `mark` in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as environ:
                if wanted in environ.read().split(b"\0"):
                    found.append(int(entry))
        except OSError:
            continue  # it has ended meanwhile, or is another user's
    return found


def reap(mark: str) -> None:
    """End all marked processes: asked first, then killed; those that they start meanwhile too."""
    signum = signal.SIGTERM
    gives_up = time.monotonic() + PATIENCE_S
    while (processes := marked(mark)) and time.monotonic() < gives_up:
        for pid in processes:
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue
        time.sleep(GRACE_S if signum == signal.SIGTERM else 0.05)
        signum = signal.SIGKILL


class Reaper:
    """Marks everything that this process starts from now on; `close`, or this process's end, ends it all."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self._mark],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for the driver only
        )
        self._before = os.environ.get(MARK)
        os.environ[MARK] = self._mark

    def close(self) -> None:
        """End what is left of the run, and wait for that."""
        assert self._process.stdin
        if self._before is None:
            os.environ.pop(MARK, None)
        else:
            os.environ[MARK] = self._before
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> "Reaper":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()
    reap(sys.argv[1])
