"""Processes of this machine, and the CPU time that its host took from them."""

import asyncio
import os
from pathlib import Path

STAT = Path("/proc/stat")


async def ended(pid: int) -> None:
    """Return when process `pid` has ended (at once if there is none)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def parent(pid: int) -> int:
    """The process that started `pid`. Raises FileNotFoundError if `pid` has ended."""
    return int(_stat(pid)[1])


def started_at(pid: int) -> int | None:
    """When `pid` was started, in clock ticks since boot: tells it from others of that number. None if it has ended."""
    try:
        return int(_stat(pid)[19])
    except OSError:
        return None


def _stat(pid: int) -> list[str]:
    """Fields of proc_pid_stat(5) from the third on. Raises OSError if the process has ended."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def children(pid: int, name: str) -> list[int]:
    """Processes called `name` that `pid` has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "comm").read_text().strip() == name and parent(int(entry.name)) == pid:
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


class StealMeter:
    """CPU time of a virtual machine that its host gave to others, since the meter was made."""

    def __init__(self) -> None:
        self._stolen, self._all = _ticks()

    def share(self) -> float:
        """The stolen share of the machine's CPU time; 0 where the kernel doesn't count it."""
        stolen, in_all = _ticks()
        return (stolen - self._stolen) / max(1, in_all - self._all)


def _ticks() -> tuple[int, int]:
    """Stolen ticks and all ticks since boot, over all CPUs: proc_stat(5)."""
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, STAT.read_text().split(None, 9)[1:9])
    return steal, user + nice + system + idle + iowait + irq + softirq + steal
