"""The relay, in a process of its own beside a real link: what it carries, and whom it keeps out."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from netem.helper.session import LinkUnavailable
from netem.relay import protocol
from netem.relay.client import RelayAddress, Standing, StationLink
from netem.relay.protocol import Hello, RelayRefused, Role
from netem.relay.server import BACKLOG, BUFFER_BYTES, MAX_PENDING, exactly, send
from netem.relay.session import RelaySession
from tests.support.links import KINDS, start_link

LOOPBACK = "127.0.0.1"


@contextlib.asynccontextmanager
async def relaying(kind: str = "paced", privilege: str = "auto", limit: int = 64) -> AsyncIterator[RelayAddress]:
    """A relay beside a link of 200 Mbit/s with four agents and two workers."""
    with start_link(kind, privilege) as link, RelaySession(link.socket_path, LOOPBACK, limit) as session:
        yield session.address


@contextlib.asynccontextmanager
async def connected(
    relay: RelayAddress, agent: int = 0, worker: int = 1
) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """(the agent's end, the worker's end) of a connection through the emulated link."""
    standing = Standing(relay, worker)
    await standing.open()
    near = await relay.connect(agent, worker)
    async with asyncio.timeout(20):
        far = await standing.accept()
    try:
        yield near, far
    finally:
        standing.close()
        near.close()
        far.close()


async def counts(relay: RelayAddress) -> dict[str, Any]:
    return (await relay.status())["counts"]


@pytest.mark.parametrize(("kind", "privilege"), KINDS)
async def test_bytes_come_through_both_ways_and_so_do_ends(kind: str, privilege: str) -> None:
    async with relaying(kind, privilege) as relay, connected(relay) as (near, far):
        sent = os.urandom(700_000)  # more than all buffers hold
        sending = asyncio.create_task(send(near, sent))
        async with asyncio.timeout(20):
            assert await exactly(far, len(sent)) == sent
            await sending
            await send(far, b"answer")
            assert await exactly(near, 6) == b"answer"
            near.shutdown(socket.SHUT_WR)
            with pytest.raises(EOFError):
                await exactly(far, 1)
            await send(far, b"still")  # the other direction goes on
            assert await exactly(near, 5) == b"still"
            far.close()
            with pytest.raises(EOFError):
                await exactly(near, 1)


async def test_a_worker_that_does_not_read_stops_its_agent() -> None:
    async with relaying() as relay, connected(relay) as (near, far):
        taken, limit = 0, 64 * 2**20
        with contextlib.suppress(TimeoutError):
            while taken < limit:
                async with asyncio.timeout(1):
                    await send(near, bytes(BUFFER_BYTES))
                taken += BUFFER_BYTES
        assert taken < 16 * 2**20, "buffers are bounded"
        del far


async def test_a_lost_worker_ends_its_connections_and_another_takes_its_place() -> None:
    async with relaying() as relay:
        async with connected(relay) as (near, far):
            far.close()
            async with asyncio.timeout(20):
                with pytest.raises((EOFError, ConnectionError)):
                    await exactly(near, 1)
        async with connected(relay) as (near, far), asyncio.timeout(20):
            await send(near, b"again")
            assert await exactly(far, 5) == b"again"


async def test_a_worker_that_never_came_can_t_be_reached() -> None:
    async with relaying() as relay:
        with pytest.raises(RelayRefused, match="worker 0 isn't listening"):
            await relay.connect(0, 0)
        with pytest.raises(RelayRefused, match="no agent 9"):
            async with connected(relay, agent=9):
                pass


async def ends(relay: RelayAddress, sent: bytes) -> None:
    """Wait until the relay closes a connection on which this was sent."""
    sock = socket.create_connection((relay.host, relay.port))
    sock.setblocking(False)
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):  # closed with bytes unread
            await send(sock, sent)
            while await asyncio.get_running_loop().sock_recv(sock, 1000):
                pass
    sock.close()


async def test_strangers_are_refused_and_counted_and_disturb_nobody() -> None:
    async with relaying() as relay, connected(relay) as (near, far):
        wrong = bytes(protocol.TOKEN_BYTES)
        with pytest.raises(RelayRefused, match="another run's token"):
            await replace(relay, token=wrong).connect(0, 1)
        await ends(relay, b"GET / HTTP/1.1\r\nHost: x\r\nAccept: everything-there-is\r\n\r\n")
        await ends(relay, Hello(Role.AGENT, 1, 0).pack(wrong))
        await ends(relay, os.urandom(100_000))
        good = bytearray(Hello(Role.STATION).pack(relay.token))
        good[5] = 9
        await ends(relay, bytes(good))
        await ends(relay, Hello(Role.STATION).pack(relay.token) + b"u" + b"\xff" * 4)
        await ends(relay, Hello(Role.STATION).pack(relay.token) + b"r" + protocol.LENGTH.pack(3) + b"{{{")
        found = await counts(relay)
        assert (found["refused_magic"], found["refused_token"], found["refused_role"]) == (2, 2, 1)
        assert found["refused_request"] == 2
        async with asyncio.timeout(20):
            await send(near, b"x")
            assert await exactly(far, 1) == b"x"


@pytest.fixture
def many_files() -> Iterator[int]:
    """How many more sockets this process may open, at most 10,000."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(hard, 11_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    yield most - 1000
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_half_open_connections_don_t_keep_others_out(many_files: int) -> None:
    async with relaying() as relay, connected(relay) as (near, far):
        idle = [socket.create_connection((relay.host, relay.port)) for _ in range(many_files)]
        async with asyncio.timeout(20):
            late = await relay.connect(1, 1)
            await send(near, b"x")
            assert await exactly(far, 1) == b"x"
        late.close()
        assert (await counts(relay))["refused_crowded"] >= many_files - MAX_PENDING - BACKLOG
        for each in idle:
            each.close()


async def test_no_more_connections_than_its_limit() -> None:
    async with relaying(limit=3) as relay, connected(relay) as (_, _):
        stations = [StationLink(relay) for _ in range(3)]
        with pytest.raises(RelayRefused, match="serves 3 connections already"):
            for station in stations:
                await station.open()
        for station in stations:
            station.close()


async def test_the_station_s_clock_the_network_s_speed_and_reports() -> None:
    async with relaying() as relay:
        station = StationLink(relay, worker=1)
        await station.open()
        sample = await station.clock(30)
        assert abs(sample.offset_s) <= sample.round_trip_s / 2 < 0.1, "the same machine's clock"
        assert await station.up_mbps(2_000_000) > 10 and await station.down_mbps(2_000_000) > 10
        await station.report({"part": "old"})
        await station.report({"part": "worker 1"})
        await station.clock(1)
        assert (await relay.status())["reports"] == [{"part": "worker 1"}]
        station.close()


async def test_the_relay_ends_with_its_session() -> None:
    async with relaying() as relay, connected(relay) as (near, far):
        pass
    with pytest.raises(OSError):
        await relay.connect(0, 1)
    del near, far


async def test_a_relay_that_can_t_be_started_again_can_be_tried_again() -> None:
    with start_link("paced", "auto") as link, RelaySession(link.socket_path, LOOPBACK, 8) as session:
        before = session.pid
        os.kill(before, signal.SIGKILL)
        session._process.wait(20)
        with socket.create_server((LOOPBACK, session.address.port)):  # somebody else took its place
            for _ in range(2):
                with pytest.raises(LinkUnavailable, match="can't listen"):
                    session.restart()
        session.restart()
        assert session.pid != before
        await session.address.status()
