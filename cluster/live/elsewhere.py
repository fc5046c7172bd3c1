"""A process on another node than the station: how it takes part in the link and in the station's time."""

import asyncio
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from agents.host import AgentHost
from agents.uplink import SocketUplink
from cloud.sockets import Accept
from cluster.processes import StealMeter
from cluster.scenario.schema import Scenario
from cluster.wiring import make_host
from models.alignment import AlignedClock
from netem.relay.client import RelayAddress, Standing, StationLink
from netem.relay.protocol import ANY, MAX_PROBE_BYTES
from reports.machine import version_of

HEADROOM = 2.0  # the network underneath must be so much faster than the emulated link
PROBE_S = 0.2  # so long the network is measured before a run, at the least rate that will do
CHECK_S = 0.05  # and so long during it
LEAST_PROBE_BYTES = 2**18
TRIES = 3
PINGS, FIRST_PINGS = 10, 30
SOON_S, LATER_S = 2.0, 10.0  # between two checks, until drift is known and afterwards
SLOWER_MS = 10.0  # a round trip that has grown by so much has slowed down
BAD_IN_A_ROW = 2
LEASE_S = 10.0  # a process that has heard nothing from the station for so long belongs to no run any more
LEASE_CHECK_S = 2.0
WORTH = 3.0  # a sample of the clock whose round trip is so many times the least isn't

Connect = Callable[[int, int], Awaitable[Any]]
_KEPT: set[asyncio.Task[None]] = set()  # a loop holds its tasks only weakly


@dataclass(frozen=True, slots=True)
class Membership:
    """What a process on another node must know to take part.

    Attributes:
        node: its address.
        peak_mbps: the emulated link's.
        probes: whether this process checks the network's rate during the run.
    """

    relay: RelayAddress
    node: str
    peak_mbps: float
    probes: bool = False

    def probe_bytes(self, seconds: float) -> int:
        """What the network must carry in so many seconds."""
        return min(max(int(HEADROOM * self.peak_mbps * 1e6 / 8 * seconds), LEAST_PROBE_BYTES), MAX_PROBE_BYTES)


@dataclass(frozen=True, slots=True)
class Examined:
    """The network between a node and the station before the run; rates are of what TCP carries."""

    up_mbps: float
    down_mbps: float
    round_trip_ms: float


async def connected_host(scenario: Scenario, agent_ids: Sequence[int], connect: Connect) -> AgentHost:
    """A host whose agents are connected with every worker. `connect` is given agent and worker."""
    warm = scenario.uplink.transport.connections == "warm"
    uplinks = {agent_id: SocketUplink(partial(connect, agent_id), warm) for agent_id in agent_ids}
    for uplink in uplinks.values():
        await uplink.open(scenario.cloud.workers)
    return make_host(scenario, agent_ids, uplinks.__getitem__, models=True)


async def listen(member: Membership, worker: int) -> Accept:
    """A worker's place in the emulated cloud, taken from another node."""
    await _join(member, worker)
    standing = Standing(member.relay, worker)
    await standing.open()
    return standing.accept


async def open_host(scenario: Scenario, agent_ids: Sequence[int], member: Membership) -> AgentHost:
    """A host on another node."""
    await _join(member, agent=agent_ids[0])
    return await connected_host(scenario, agent_ids, member.relay.connect)


async def _join(member: Membership, worker: int = ANY, agent: int = 0) -> None:
    """Have this process be part of the run for as long as it hears of the station. Raises OSError."""
    await InStep(member, StationLink(member.relay, worker, agent)).begin()
    _KEPT.add(asyncio.create_task(_end_with(StationLink(member.relay, worker, agent))))


async def _end_with(station: StationLink) -> None:
    await until_unheard(station)
    print(f"the station was not heard of for {LEASE_S:g} s: process {os.getpid()} ends itself", file=sys.stderr)
    os._exit(1)


async def until_unheard(station: StationLink) -> None:
    """Return once the station hasn't answered for `LEASE_S`: by then it has given this process up.

    Args:
        station: a connection for this alone, since measuring the network's speed occupies one for long.
    """
    failing_since_s: float | None = None
    while failing_since_s is None or time.monotonic() - failing_since_s < LEASE_S:
        await asyncio.sleep(LEASE_CHECK_S)
        tried_s = time.monotonic()
        try:
            async with asyncio.timeout(LEASE_CHECK_S):
                if failing_since_s is not None or not station.is_open:
                    await station.open()
                await station.clock(1)
            failing_since_s = None
        except (OSError, EOFError, TimeoutError):
            failing_since_s = tried_s if failing_since_s is None else failing_since_s


class InStep:
    """Keeps a process's event loop on the station's clock, checks the network to it, and reports both there."""

    def __init__(self, member: Membership, station: StationLink) -> None:
        self._member = member
        self._station = station
        self._clock = AlignedClock()
        self._steal = StealMeter()
        self._least_s = float("inf")
        self._error_ms = self._uncertain_ms = self._round_trip_ms = 0.0
        self._least_mbps: float | None = None
        self._bad = 0
        self._slow = ""

    async def begin(self) -> None:
        """The loop is on the station's clock on return, and kept there. Raises OSError: the relay can't be reached."""
        await self._station.open()
        await self._look(FIRST_PINGS)
        self._clock.drive(asyncio.get_running_loop())
        _KEPT.add(asyncio.create_task(self._keep()))

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LATER_S if self._clock.settled else SOON_S)
            try:
                await self._look(PINGS)
                if self._clock.settled:
                    await self._check()
                await self._station.report(self._report())
            except (OSError, EOFError):
                try:
                    await self._station.open()
                except OSError:
                    pass  # again at the next check

    async def _look(self, pings: int) -> None:
        """Set the clock by a few pings, if one of them was fast."""
        for _ in range(TRIES):
            sample = await self._station.clock(pings)
            self._least_s = min(self._least_s, sample.round_trip_s)
            if sample.round_trip_s <= WORTH * self._least_s:
                break
        else:
            return
        error_s = self._clock.follow(sample.offset_s)
        self._error_ms = max(self._error_ms, abs(error_s) * 1e3)
        self._uncertain_ms = max(self._uncertain_ms, sample.round_trip_s / 2 * 1e3)

    async def _check(self) -> None:
        """Whether the network is still fast enough for the emulated link; once it isn't twice in a row, it is slow."""
        round_trip_ms = (await self._station.clock(PINGS)).round_trip_s * 1e3
        self._round_trip_ms = max(self._round_trip_ms, round_trip_ms)
        found = ""
        if round_trip_ms > self._least_s * 1e3 + SLOWER_MS:
            found = f"a round trip takes {round_trip_ms:.1f} ms, and took {self._least_s * 1e3:.1f} ms"
        if self._member.probes:
            peak_mbps = self._member.peak_mbps
            up_mbps, down_mbps = await measured(self._station, self._member.probe_bytes(CHECK_S), peak_mbps)
            slowest_mbps = min(up_mbps, down_mbps)
            self._least_mbps = min(slowest_mbps, self._least_mbps or slowest_mbps)
            if slowest_mbps < peak_mbps:
                found = f"it carries {slowest_mbps:.3g} Mbit/s beside the run, less than the uplink's {peak_mbps:g}"
        self._bad = self._bad + 1 if found else 0
        if self._bad >= BAD_IN_A_ROW:
            self._slow = found

    def _report(self) -> dict[str, Any]:
        return {
            "node": self._member.node,
            "clock_error_ms": round(self._error_ms, 4),
            "clock_uncertainty_ms": round(self._uncertain_ms, 4),
            "round_trip_ms": round(self._round_trip_ms, 3),
            "least_mbps": self._least_mbps and round(self._least_mbps, 2),
            "stolen": round(self._steal.share(), 4),
            "slow": self._slow,
        }


async def measured(station: StationLink, size: int, enough_mbps: float) -> tuple[float, float]:
    """Rates up and down, in Mbit/s: each the best of a few tries, or the first that is enough."""
    found = []
    for measure in (station.up_mbps, station.down_mbps):
        best = 0.0
        for _ in range(TRIES):
            best = max(best, await measure(size))
            if best >= enough_mbps:
                break
        found.append(min(best, 1e6))  # a small probe may come in one piece
    return found[0], found[1]


async def examine(member: Membership) -> Examined:
    """Measure the network from here to the station. Raises OSError."""
    station = StationLink(member.relay)
    await station.open()
    try:
        size, enough_mbps = member.probe_bytes(PROBE_S), HEADROOM * member.peak_mbps
        sample = await station.clock(FIRST_PINGS)
        up_mbps, down_mbps = await measured(station, size, enough_mbps)
        return Examined(up_mbps, down_mbps, sample.round_trip_s * 1e3)
    finally:
        station.close()


def versions() -> dict[str, str]:
    """What must be the same on all nodes."""
    return {"Python": platform.python_version(), "scout-emulator": version_of("scout-emulator")}
