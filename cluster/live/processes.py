"""Noticing at once that a process has ended."""

import asyncio
import os
from pathlib import Path


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
    """The process that started `pid`. Raises FileNotFoundError if that has ended."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def started_at(pid: int) -> int | None:
    """When `pid` was started, in clock ticks since boot: tells it from others of that number. None if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


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
