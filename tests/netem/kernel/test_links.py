"""Bytes over every kind of link: first the path as such, then its limits, with real transfers."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest

from netem.fairness import jain_index
from netem.helper.client import LinkClient
from netem.helper.session import LinkSession, LinkUnavailable
from netem.wire import ideal_transfer_s, wire_bytes
from tests.support.links import measured, start_link

pytestmark = pytest.mark.measuring
MIB = 1 << 20


@contextlib.asynccontextmanager
async def path(client: LinkClient, agent: int, worker: int = 0) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """(the agent's end, the worker's end) of a fresh connection."""
    with await client.listen(worker) as listener, await client.connect(agent, worker) as near:
        far, _ = await asyncio.get_running_loop().sock_accept(listener)
        with far:
            yield near, far


async def transfer_s(near: socket.socket, far: socket.socket, payload: bytes) -> float:
    """Seconds from the first send to the arrival of the last byte; checks the bytes."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    started_s = time.monotonic()
    sending = asyncio.create_task(loop.sock_sendall(near, payload))
    while len(received) < len(payload):
        data = await asyncio.wait_for(loop.sock_recv(far, MIB), 30)
        assert data, "hung up early"
        received += data
    took_s = time.monotonic() - started_s
    await sending
    assert received == payload
    return took_s


def payload(size: int) -> bytes:
    return bytes(index * 7 % 251 for index in range(1021)) * (size // 1021 + 1)


def tolerance(session: LinkSession) -> float:
    return 0.03 if session.kind == "kernel" else 0.10


async def test_unimpaired_path_carries_bytes_both_ways(client: LinkClient) -> None:
    await client.set_grants({0: 1000})
    await client.set_channel(1000)
    async with path(client, 0) as (near, far):
        assert await transfer_s(near, far, payload(MIB)[:MIB]) < 1.0
        await transfer_s(far, near, payload(MIB)[:MIB])
        near.shutdown(socket.SHUT_WR)
        loop = asyncio.get_running_loop()
        assert await asyncio.wait_for(loop.sock_recv(far, 1), 5) == b""
        await loop.sock_sendall(far, b"answer after the request's end")
        assert await asyncio.wait_for(loop.sock_recv(near, 100), 5) == b"answer after the request's end"


@pytest.mark.parametrize("size", [MIB // 4, MIB])
@measured
async def test_transfer_takes_its_ideal_time(session: LinkSession, client: LinkClient, size: int) -> None:
    async with path(client, 1) as (near, far):
        took_s = await transfer_s(near, far, payload(size)[:size])
    assert took_s == pytest.approx(ideal_transfer_s(size, 50), rel=tolerance(session))


@measured
async def test_what_flows_down_is_not_shaped(client: LinkClient) -> None:
    await client.set_grants({0: 1})
    async with path(client, 0) as (near, far):
        # Only its acknowledgements are: they go up.
        assert await transfer_s(far, near, payload(MIB)[:MIB]) < ideal_transfer_s(MIB, 1) / 4


@measured
async def test_changed_grant_acts_at_once(session: LinkSession, client: LinkClient) -> None:
    async with path(client, 2) as (near, far):
        await client.set_grants({2: 5})
        slow = asyncio.create_task(transfer_s(near, far, payload(MIB)[:MIB]))
        await asyncio.sleep(0.5)
        await client.set_grants({2: 40})
        took_s = await slow
    sent_before = 0.5 / ideal_transfer_s(1, 5)
    expected_s = 0.5 + ideal_transfer_s(MIB - sent_before, 40)
    assert took_s == pytest.approx(expected_s, rel=max(0.05, tolerance(session)))


@measured
async def test_changed_channel_acts_at_once(session: LinkSession, client: LinkClient) -> None:
    await client.set_channel(200)
    async with path(client, 2) as (near, far):
        quick = asyncio.create_task(transfer_s(near, far, payload(2 * MIB)[: 2 * MIB]))
        await asyncio.sleep(0.2)
        await client.set_channel(20)
        took_s = await quick
    sent_before = 0.2 / ideal_transfer_s(1, 50)
    expected_s = 0.2 + ideal_transfer_s(2 * MIB - sent_before, 20)
    assert took_s == pytest.approx(expected_s, rel=max(0.05, tolerance(session)))


@measured
async def test_one_agents_grant_is_not_anothers(session: LinkSession, client: LinkClient) -> None:
    size = MIB // 4
    await client.set_grants({0: 10, 1: 40})
    async with path(client, 0, 0) as slow, path(client, 1, 1) as quick:
        times_s = await asyncio.gather(
            transfer_s(*slow, payload(size)[:size]), transfer_s(*quick, payload(size)[:size])
        )
    assert times_s[0] == pytest.approx(ideal_transfer_s(size, 10), rel=tolerance(session))
    assert times_s[1] == pytest.approx(ideal_transfer_s(size, 40), rel=tolerance(session))


@measured
async def test_channel_caps_and_shares_overcommitted_grants(make_session: Callable[..., LinkSession]) -> None:
    agents, size = 16, MIB // 8
    session = make_session(agents=agents, channel_mbps=40, grant_mbps=10)
    async with await LinkClient.open(session.socket_path) as client, contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(await client.listen(0))
        ends = []
        for agent in range(agents):
            near = stack.enter_context(await client.connect(agent, 0))
            far, _ = await asyncio.get_running_loop().sock_accept(listener)
            ends.append((near, stack.enter_context(far)))
        times_s = await asyncio.gather(*(transfer_s(*pair, payload(size)[:size]) for pair in ends))
    assert max(times_s) == pytest.approx(ideal_transfer_s(agents * size, 40), rel=tolerance(session))
    assert jain_index([1 / took_s for took_s in times_s]) >= 0.999


@measured
async def test_grants_below_the_channel_are_not_shared(make_session: Callable[..., LinkSession]) -> None:
    size = MIB // 4
    session = make_session(channel_mbps=30, grant_mbps=50)
    async with await LinkClient.open(session.socket_path) as client:
        await client.set_grants({0: 5})
        async with path(client, 0, 0) as modest, path(client, 1, 1) as greedy:
            modest_s, greedy_s = await asyncio.gather(
                transfer_s(*modest, payload(size // 2)[: size // 2]), transfer_s(*greedy, payload(size)[:size])
            )
    # Max-min: the modest one keeps its 5, the greedy one gets the 25 that are left.
    assert modest_s == pytest.approx(ideal_transfer_s(size // 2, 5), rel=tolerance(session))
    assert greedy_s == pytest.approx(ideal_transfer_s(size, 25), rel=tolerance(session))


async def test_counters_agree_with_the_bytes_sent(session: LinkSession, client: LinkClient) -> None:
    size = MIB // 2
    async with path(client, 3) as (near, far):
        await transfer_s(near, far, payload(size)[:size])
        counters = await client.counters()
    sent = counters.agents[3]
    assert counters.direct_packets == 0
    # The kernel also counts the connection's first packets, and segments that a send call ended early.
    assert wire_bytes(size) <= sent.hop1_bytes <= wire_bytes(size) * 1.02
    assert wire_bytes(size) <= sent.hop2_bytes <= wire_bytes(size) * 1.02
    assert sent.hop1_packets >= size // 1448
    assert sent.hop2_dropped_packets == sent.hop2_backlog_bytes == 0
    assert counters.agents[0].hop1_bytes == 0


async def test_worker_can_listen_again_after_it_stopped(client: LinkClient) -> None:
    for _ in range(2):
        async with path(client, 0) as (near, far):
            await transfer_s(near, far, b"x" * 100)


async def test_connecting_to_nobody_fails(client: LinkClient) -> None:
    with pytest.raises((ConnectionRefusedError, RuntimeError), match=r"refused|isn't listening"):
        await client.connect(0, 1)


@pytest.mark.parametrize("congestion", ["reno", "cubic", "bbr"])
@pytest.mark.parametrize("privilege", ["root", "userns"])
async def test_connections_use_the_congestion_control_that_was_asked_for(privilege: str, congestion: str) -> None:
    session = start_link("kernel", privilege, congestion=congestion)  # skips where the kernel doesn't offer it
    try:
        async with await LinkClient.open(session.socket_path) as client, path(client, 0) as (near, far):
            await transfer_s(near, far, payload(MIB // 4)[: MIB // 4])
            for end in (near, far):
                used = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
                assert used.rstrip(b"\0").decode() == congestion
    finally:
        session.stop()


def test_the_paced_link_has_none_to_choose() -> None:
    with pytest.raises(LinkUnavailable, match="only the kernel"):
        LinkSession.start("paced", agents=1, workers=1, channel_mbps=1, grant_mbps=1, congestion="cubic")
