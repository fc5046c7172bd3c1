"""Ends what a run's own Ray cluster leaves behind, when the driver is gone: however it ended.

Ray's processes watch one another, but some take half a minute to notice that all others are dead. This small process
holds the reading end of a pipe whose writing end only the driver has. When the pipe closes, it ends, by its id, every
process that still has a file open in the cluster's own folder, as all of Ray's have their logs there, and removes the
folder. (A mark in the environment wouldn't do: Ray's agents overwrite theirs with their titles.)
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType

GRACE_S = 0.5
PATIENCE_S = 10.0


def holders(folder: str) -> list[int]:
    """Processes that have a file open below `folder`."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            descriptors = os.listdir(f"/proc/{entry}/fd") if entry.isdecimal() else []
        except OSError:
            continue  # it has ended meanwhile, or is another user's
        for descriptor in descriptors:
            try:
                if os.readlink(f"/proc/{entry}/fd/{descriptor}").startswith(folder + "/"):
                    found.append(int(entry))
                    break
            except OSError:
                continue
    return found


def reap(folder: str, driver: int) -> None:
    """End all holders of `folder` but the driver: asked first, then killed; those that they start meanwhile too."""
    signum = signal.SIGTERM
    gives_up = time.monotonic() + PATIENCE_S
    while (processes := [pid for pid in holders(folder) if pid != driver]) and time.monotonic() < gives_up:
        for pid in processes:
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue
        time.sleep(GRACE_S if signum == signal.SIGTERM else 0.05)
        signum = signal.SIGKILL
    shutil.rmtree(folder, ignore_errors=True)


class Reaper:
    """Gives a Ray cluster its `folder`; `close`, or this process's end, ends everything that lives there."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="scout-ray-")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self.folder, str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for the driver only
        )

    def close(self) -> None:
        """End what is left of the cluster, and wait for that."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)  # what this process wrote there meanwhile

    def __enter__(self) -> "Reaper":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()
    reap(sys.argv[1], int(sys.argv[2]))
