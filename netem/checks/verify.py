"""Verification of a link before a run: measures rates and round trips of a few agents against the requested ones."""

import asyncio
import contextlib
import socket
import statistics
import struct
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

from netem.helper.client import LinkClient, LinkRefused
from netem.helper.session import LinkSession, LinkUnavailable
from netem.impairments import Impairments
from netem.wire import FRAME_BYTES, SEGMENT_PAYLOAD_BYTES, ideal_transfer_s

MOST_AGENTS = 3
TRIES = 3
PINGS = 5
TRANSFER_S = 0.15
LEAST_MBPS = 2.0  # of each agent: at lower rates too few frames arrive in TRANSFER_S for a measurement
MOST_MBPS = 200.0  # of all agents together: one process can reliably send and receive this much
# On a delayed path TCP sends ten segments and then waits for a round trip: only these segments measure the link's rate,
# at a rate low enough to time them.
FIRST_WINDOW_SEGMENTS = 10
FIRST_WINDOW_MBPS = 4.0
# Of hundreds of transfers on two busy cores, single ones deviated by 23 % (docs/links.md), never three in a row. A
# misbuilt link (unshaped, with segmentation offload, or without its delay) deviates far more.
RATE_BOUND = 0.15
ROUND_TRIP_BOUND_MS = 5.0
ROUND_TRIP_BOUND = 0.05
TIMEOUT_S = 30.0
STALLED_S = 5.0  # of a transfer: more than the longest delay
NO_LINGER = struct.pack("ii", 1, 0)


class LinkDeviates(LinkUnavailable):
    """The link deviates from its settings; the message holds the measurements."""


@dataclass
class AgentVerified:
    """Measurements of one agent's link: wire rates (None if impairments make them unmeasurable) and round trips."""

    agent: int
    asked_mbps: float | None
    achieved_mbps: float | None
    least_round_trip_ms: float
    most_round_trip_ms: float
    round_trip_ms: float

    def complaints(self) -> list[str]:
        """Texts about measurements that exceed the bounds."""
        found = []
        if self.asked_mbps and self.achieved_mbps and abs(self.achieved_mbps / self.asked_mbps - 1) > RATE_BOUND:
            found.append(f"agent {self.agent} got {self.achieved_mbps:.3g} Mbit/s of {self.asked_mbps:.3g}")
        if self.beyond_ms() > ROUND_TRIP_BOUND_MS + ROUND_TRIP_BOUND * self.most_round_trip_ms:
            wanted = f"{self.least_round_trip_ms:.3g}"
            if self.most_round_trip_ms != self.least_round_trip_ms:
                wanted += f" to {self.most_round_trip_ms:.3g}"
            found.append(f"agent {self.agent} had round trips of {self.round_trip_ms:.3g} ms, not {wanted}")
        return found

    def beyond_ms(self) -> float:
        """The distance of the round trip from the requested range, in ms."""
        return max(self.least_round_trip_ms - self.round_trip_ms, self.round_trip_ms - self.most_round_trip_ms, 0.0)


@dataclass
class LinkVerification:
    """A link's measurements before a run, within these bounds (relative, except for the one in ms)."""

    agents: list[AgentVerified]
    rate_bound: float
    round_trip_bound_ms: float
    round_trip_bound: float
    took_s: float


async def verify_link(
    session: LinkSession, agents: int, channel_mbps: float, grant_mbps: float, impairments: Impairments
) -> LinkVerification:
    """Measure up to three agents at once, with different links if possible, in about 0.2 s and three round trips.

    They share the channel during the measurement; then the given rates are restored. A measurement out of bounds is
    repeated up to twice. Worker 0 must not listen yet.

    Raises:
        LinkDeviates: a measurement was out of bounds each time, or the link is gone.
    """
    began_s = time.monotonic()
    chosen = _choose(agents, impairments)
    try:
        async with asyncio.timeout(TIMEOUT_S), await LinkClient.open(session.socket_path) as client:
            rate_mbps = min(max(channel_mbps, LEAST_MBPS * len(chosen)), MOST_MBPS)
            await client.set_channel(rate_mbps)
            asked = {agent: _asked_mbps(agent, rate_mbps / len(chosen), impairments) for agent in chosen}
            await client.set_grants({agent: mbps or rate_mbps / len(chosen) for agent, mbps in asked.items()})
            async with _connections(client, chosen) as ends:
                found = await _measure(ends, asked, impairments)
            await client.set_channel(channel_mbps)
            await client.set_grants(dict.fromkeys(chosen, grant_mbps))
    except TimeoutError:
        raise LinkDeviates(f"the link carries no traffic: no answer within {TIMEOUT_S:g} s") from None
    except (OSError, LinkRefused) as error:  # LinkLost is one
        raise LinkDeviates(f"the link can't be used: {error}") from error
    if complaints := [complaint for each in found for complaint in each.complaints()]:
        raise LinkDeviates(
            f"the link deviates from its settings, measured {TRIES} times: {'; '.join(complaints)}. Is this machine "
            "too busy? `uplink.verify: false` skips this check"
        )
    took_s = round(time.monotonic() - began_s, 3)
    return LinkVerification(found, RATE_BOUND, ROUND_TRIP_BOUND_MS, ROUND_TRIP_BOUND, took_s)


def _choose(agents: int, impairments: Impairments) -> list[int]:
    """Choose one agent of each distinct link, then the last agent, up to MOST_AGENTS."""
    chosen: list[int] = []
    seen = []
    for agent in range(agents):
        if impairments.of(agent) not in seen:
            seen.append(impairments.of(agent))
            chosen.append(agent)
    if agents - 1 not in chosen:
        chosen.append(agents - 1)
    return chosen[:MOST_AGENTS]


def _asked_mbps(agent: int, share_mbps: float, impairments: Impairments) -> float | None:
    """The rate at which to measure an agent; None if so short a TCP transfer can't measure the link's rate."""
    if not impairments.touch(agent):
        return share_mbps
    ways = [way for link in (impairments.shared, impairments.of(agent)) for way in (link.up, link.down)]
    if any(way.loss or way.jitter_ms or way.reorder for way in ways):
        return None
    return min(share_mbps, FIRST_WINDOW_MBPS)


Ends = tuple[socket.socket, socket.socket]


@contextlib.asynccontextmanager
async def _connections(client: LinkClient, agents: list[int]) -> AsyncIterator[dict[int, Ends]]:
    """Map each agent to (its end, the worker's end) of a connection; all are closed afterwards."""
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(await client.listen(0))
        ends = {}
        for agent in agents:
            near = stack.enter_context(await client.connect(agent, 0))
            far, _ = await loop.sock_accept(listener)
            stack.enter_context(far)
            # Close with a reset: a normal close would add packets to the run's counters.
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ends[agent] = near, far
        yield ends


async def _measure(
    ends: dict[int, Ends], asked: dict[int, float | None], impairments: Impairments
) -> list[AgentVerified]:
    """Measure transfers of all agents at once, then round trips; repeat for those out of bounds."""
    found = []
    for agent in ends:
        ways = [way for link in (impairments.shared, impairments.of(agent)) for way in (link.up, link.down)]
        least_ms, most_ms = (sum(bounds) for bounds in zip(*(way.delay_range_ms for way in ways), strict=True))
        found.append(AgentVerified(agent, asked[agent], None, least_ms, most_ms, float("inf")))
    # Transfers first: on a delayed path only a new connection's initial window measures the rate.
    await _measure_rates(found, ends, impairments)
    await _measure_round_trips(found, ends)
    return found


async def _measure_rates(found: list[AgentVerified], ends: dict[int, Ends], impairments: Impairments) -> None:
    """Note each agent's best rate of up to TRIES measurements."""
    for attempt in range(TRIES):
        if rated := [each for each in found if each.asked_mbps and (attempt == 0 or _off_rate(each))]:
            sizes = [_transfer_bytes(each.asked_mbps or 0.0, impairments.touch(each.agent)) for each in rated]
            rates = await _all(
                [_achieved_mbps(*ends[each.agent], size) for each, size in zip(rated, sizes, strict=True)]
            )
            for each, mbps in zip(rated, rates, strict=True):
                if each.achieved_mbps is None or _error(mbps, each) < _error(each.achieved_mbps, each):
                    each.achieved_mbps = mbps


async def _measure_round_trips(found: list[AgentVerified], ends: dict[int, Ends]) -> None:
    """Note each agent's best round trip of up to TRIES measurements."""
    for attempt in range(TRIES):
        if timed := [each for each in found if attempt == 0 or each.beyond_ms() > ROUND_TRIP_BOUND_MS]:
            times_ms = await _all([_round_trip_ms(*ends[each.agent]) for each in timed])
            for each, round_trip_ms in zip(timed, times_ms, strict=True):
                before_ms, before = each.round_trip_ms, each.beyond_ms()
                each.round_trip_ms = round_trip_ms
                if before < each.beyond_ms():
                    each.round_trip_ms = before_ms


def _error(mbps: float, verified: AgentVerified) -> float:
    return abs(mbps / (verified.asked_mbps or mbps) - 1)


def _off_rate(verified: AgentVerified) -> bool:
    return _error(verified.achieved_mbps or 0.0, verified) > RATE_BOUND


def _transfer_bytes(mbps: float, delayed: bool) -> int:
    if delayed:
        return FIRST_WINDOW_SEGMENTS * SEGMENT_PAYLOAD_BYTES
    return round(TRANSFER_S / ideal_transfer_s(1, mbps))


async def _all(measurements: list[Coroutine[Any, Any, float]]) -> list[float]:
    return list(await asyncio.gather(*measurements))


async def _achieved_mbps(near: socket.socket, far: socket.socket, size: int) -> float:
    """The wire rate (Mbit/s) at which `size` bytes arrive, from the first read to the last."""
    # In threads, which block in the kernel: delays of the event loop would look like a slow link.
    for end in (near, far):
        end.settimeout(STALLED_S)
    try:
        sending = asyncio.to_thread(near.sendall, bytes(size))
        _, mbps = await asyncio.gather(sending, asyncio.to_thread(_receive, far, size))
    finally:
        for end in (near, far):
            end.setblocking(False)
    return mbps


def _receive(far: socket.socket, size: int) -> float:
    received = first = 0
    first_s = last_s = 0.0
    buffer = bytearray(1 << 18)
    while received < size:
        count = far.recv_into(buffer)
        last_s = time.monotonic()
        if not count:
            raise LinkDeviates("a connection through the link broke")
        if not received:
            first, first_s = count, last_s
        received += count
    if last_s == first_s:  # all in one read: the link didn't limit it
        return float("inf")
    return (size - first) * 8 / 1e6 / (last_s - first_s) * FRAME_BYTES / SEGMENT_PAYLOAD_BYTES


async def _round_trip_ms(near: socket.socket, far: socket.socket) -> float:
    """The median of a few round trips, in ms."""
    loop = asyncio.get_running_loop()
    times_ms = []
    for _ in range(PINGS):
        began_s = time.monotonic()
        for sender, receiver in ((near, far), (far, near)):
            await loop.sock_sendall(sender, b"?")
            await loop.sock_recv(receiver, 1)
        times_ms.append((time.monotonic() - began_s) * 1e3)
    return statistics.median(times_ms)
