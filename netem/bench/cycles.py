"""Starts and stops links repeatedly, killing some at random moments, to find leaked resources."""

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from netem.helper.session import LinkKind, LinkSession, LinkUnavailable

KILLED = 0.3  # share of cycles whose helper gets SIGKILL, between its start and 50 ms after the link is built
LATEST_KILL_S = 0.4
SETTLE_S = 1.0
WARM_UP = 3  # the first cycles load modules that stay in memory


def bench_cycles(
    count: int, kind: LinkKind = "auto", agents: int = 4, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Start and stop `count` links; returns the resources held before and after, ready for JSON.

    Raises:
        LinkUnavailable: this machine can't provide this kind of link.
    """
    rng = random.Random(0)
    kinds = {"kind": kind, "agents": agents, "workers": 1, "channel_mbps": 50.0, "grant_mbps": 10.0}
    for _ in range(WARM_UP):
        session = LinkSession.start(**kinds)  # type: ignore[arg-type]
        session.stop()
    before = _held()
    killed = 0
    began_s = time.monotonic()
    for number in range(count):
        if rng.random() < KILLED:
            killed += _killed_cycle(kinds, rng.uniform(0, LATEST_KILL_S))
        else:
            LinkSession.start(**kinds).stop()  # type: ignore[arg-type]
        if (number + 1) % 50 == 0:
            progress(f"{number + 1} of {count}")
    took_s = time.monotonic() - began_s
    time.sleep(SETTLE_S)
    return {
        "link": session.kind,
        "privilege": session.privilege,
        "cycles": count,
        "killed": killed,
        "agents": agents,
        "took_s": round(took_s, 1),
        "before": before,
        "after": _held(),
    }


def _killed_cycle(kinds: dict[str, Any], after_s: float) -> bool:
    """Start a link and kill its helper at `after_s`; returns whether it was still alive to be killed."""
    done = threading.Event()
    hit = False

    def kill() -> None:
        nonlocal hit
        if done.wait(after_s):
            return
        for pid in _children():
            try:
                os.kill(pid, signal.SIGKILL)
                hit = True
            except ProcessLookupError:
                pass

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        session = LinkSession.start(**kinds)
    except LinkUnavailable:
        pass  # the helper was killed while it started
    else:
        done.wait(0.05)
        session.stop()
    done.set()
    killer.join()
    return hit


def _held() -> dict[str, int]:
    """Resources that a leak would increase: this process's own, and the network namespaces held by any process."""
    namespaces = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            for place in ("ns/net", *_descriptors(process)):
                try:
                    target = os.readlink(process / place)
                except OSError:
                    continue
                if target.startswith("net:"):
                    namespaces.add(target)
    return {
        "namespaces": len(namespaces),
        "descriptors": len(_descriptors(Path("/proc/self"))),
        "children": len(_children()),
        "folders": len(list(Path(os.environ.get("TMPDIR", "/tmp")).glob("scout-link-*"))),
        "peak_resident_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def _descriptors(process: Path) -> list[str]:
    try:
        return [f"fd/{entry.name}" for entry in (process / "fd").iterdir()]
    except OSError:
        return []


def _children() -> list[int]:
    """Child processes of all threads of this process."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        try:
            found += [int(pid) for pid in (thread / "children").read_text().split()]
        except OSError:
            continue
    return found


def cycles_table(found: dict[str, Any]) -> Table:
    """The result of `bench_cycles` as a table."""
    table = Table(
        title=f"{found['link']} link by {found['privilege']}, {found['agents']} agents: {found['cycles']} starts and "
        f"stops, {found['killed']} killed, in {found['took_s']:g} s",
        title_justify="left",
    )
    for column in ("held", "before", "after"):
        table.add_column(column, justify="left" if column == "held" else "right")
    for name, before in found["before"].items():
        table.add_row(name.replace("_", " "), f"{before:,}", f"{found['after'][name]:,}")
    return table
