"""Which processes live, whose children they are, and which network namespaces they hold."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster import processes


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and whose exit code nobody has read doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has taken: what it has got done, however busy the machine is."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> dict[int, str]:
    """The process and those below it, with their command lines."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = (processes.parent(int(entry.name)), (entry / "cmdline").read_text())
        except OSError:
            continue
    found = [pid]
    for each in found:
        found += [child for child, (parent, _) in parents.items() if parent == each]
    return {each: parents[each][1].replace("\0", " ") for each in found}


def held_namespaces(process: Path) -> set[str]:
    """The network namespaces that a process (by its folder in /proc) is in or holds open."""
    found = set()
    try:
        for link in [process / "ns/net", *(process / "fd").iterdir()]:
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(link)
                if target.startswith("net:"):
                    found.add(target)
    except OSError:  # it has ended meanwhile, or this user may not look
        pass
    return found


@dataclass(frozen=True)
class Namespaces:
    """Network namespaces while they were in use: their names, and who held them.

    The kernel gives a name anew as soon as its namespace is gone, to any process of the machine: those that hold one
    of these names later, and did not hold it then, hold another namespace.
    """

    names: frozenset[str]
    holders: frozenset[tuple[int, int | None]]  # process and when it was started

    def gone(self) -> bool:
        """Whether none of the processes that held them does any more."""
        return not any(
            processes.started_at(pid) == started and self.names & held_namespaces(Path(f"/proc/{pid}"))
            for pid, started in self.holders
        )


def namespaces_of(*pids: int) -> Namespaces:
    """The network namespaces that these processes have and this one hasn't."""
    names = set().union(*(held_namespaces(Path(f"/proc/{pid}")) for pid in pids)) - held_namespaces(Path("/proc/self"))
    holding = [int(path.name) for path in Path("/proc").glob("[0-9]*") if names & held_namespaces(path)]
    return Namespaces(frozenset(names), frozenset((pid, processes.started_at(pid)) for pid in holding))


def patience_s(idle_s: float) -> float:
    """What may take `idle_s` on an idle machine: as much longer as there are processes for each core by now."""
    return idle_s * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def wait_until(true: Callable[[], bool], idle_s: float = 5.0) -> bool:
    """Whether it gets true within `patience_s(idle_s)`."""
    deadline_s = time.monotonic() + patience_s(idle_s)
    while time.monotonic() < deadline_s:
        if true():
            return True
        time.sleep(0.02)
    return true()
