"""Ends the remaining processes of a run's private Ray cluster when the driver ends, even if it was killed.

Ray's processes watch one another, but some take half a minute to notice that all others are dead. This small process
holds the reading end of a pipe whose writing end only the driver has. When the pipe closes, it ends, by process id,
every process that still has a file open in the cluster's folder (all of Ray's processes keep their logs there), and
removes the folder. An environment variable couldn't identify them: Ray's agents overwrite their environment.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from types import TracebackType

GRACE_S = 0.5
TIMEOUT_S = 10.0


def holders(folder: str) -> list[int]:
    """Ids of the processes that have a file open below `folder`."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            descriptors = os.listdir(f"/proc/{entry}/fd") if entry.isdecimal() else []
        except OSError:
            continue  # it has ended, or belongs to another user
        for descriptor in descriptors:
            try:
                if os.readlink(f"/proc/{entry}/fd/{descriptor}").startswith(folder + "/"):
                    found.append(int(entry))
                    break
            except OSError:
                continue
    return found


def reap(folder: str, driver: int) -> None:
    """End all holders of `folder` except the driver, by SIGTERM, then SIGKILL; also those started meanwhile."""
    signum = signal.SIGTERM
    deadline_s = time.monotonic() + TIMEOUT_S
    while (processes := [pid for pid in holders(folder) if pid != driver]) and time.monotonic() < deadline_s:
        for pid in processes:
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue
        time.sleep(GRACE_S if signum == signal.SIGTERM else 0.05)
        signum = signal.SIGKILL
    shutil.rmtree(folder, ignore_errors=True)


class Reaper:
    """Removes the `folder` of a Ray cluster; `close`, or the end of this process, ends all processes that use it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self.folder, str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in the terminal is for the driver only
        )

    def close(self) -> None:
        """End the cluster's remaining processes and wait for that."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)  # files that this process wrote there meanwhile

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
