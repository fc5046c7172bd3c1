"""The helper under clients that misbehave: it serves the others on, leaks nothing, and its hops stay shaped."""

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netem.helper import protocol
from netem.helper.client import LinkClient, LinkRefused
from netem.helper.server import MAX_CLIENTS
from netem.helper.session import LinkSession
from netem.wire import ideal_transfer_s
from tests.support.links import start_link
from tests.support.processes import namespaces_of

SIZE = 1 << 18
CYCLES = 5  # of each of the three kinds of link
COUNTERS = b'{"id": 1, "op": "counters"}'
SET_CHANNEL = b'{"id": 1, "op": "channel", "mbps": 20}'  # the cheapest request that reaches the kernel


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def falls_to(pid: int, count: int) -> bool:
    """Whether a process has no more than `count` descriptors, soon."""
    for _ in range(100):
        if descriptors(pid) <= count:
            return True
        await asyncio.sleep(0.05)
    return False


def bare(session: LinkSession) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(session.socket_path)  # with a timeout, it would fail where the helper's backlog is full
    connection.settimeout(10)
    return connection


async def require_shaped(session: LinkSession, mbps: float = 20.0) -> None:
    """A transfer takes no less than its grant makes it take, and nothing went past the shaping."""
    loop = asyncio.get_running_loop()
    async with await LinkClient.open(session.socket_path) as client:
        await client.set_grants({1: mbps})
        with await client.listen(0) as listener, await client.connect(1, 0) as near:
            far, _ = await loop.sock_accept(listener)
            with far:
                began_s = loop.time()
                sending = asyncio.create_task(loop.sock_sendall(near, bytes(SIZE)))
                received = 0
                while received < SIZE:
                    received += len(await asyncio.wait_for(loop.sock_recv(far, 1 << 18), 10))
                took_s = loop.time() - began_s
                await sending
        assert took_s > 0.95 * ideal_transfer_s(SIZE, mbps)
        assert (await client.counters()).direct_packets == 0


@contextlib.contextmanager
def room_for_descriptors(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < count:
        pytest.skip(f"this machine allows {before[1]} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(count, before[0]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_more_clients_than_there_may_be(session: LinkSession) -> None:
    before = descriptors(session.pid)
    with room_for_descriptors(2 * MAX_CLIENTS), contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(bare(session)) for _ in range(MAX_CLIENTS + 50)]
        for one in crowd:  # those who were let in are served; the others are hung up on
            with contextlib.suppress(OSError):
                one.send(SET_CHANNEL)
        served = 0
        for one in crowd:
            with contextlib.suppress(ConnectionError):
                served += bool(one.recv(protocol.MAX_ANSWER_BYTES))
        assert served == MAX_CLIENTS
    assert await falls_to(session.pid, before), "the crowd has left"
    await require_shaped(session)


async def test_a_flood_of_requests_delays_but_does_not_stop_others(session: LinkSession) -> None:
    with bare(session) as flooder:
        flooder.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 100_000:
                flooder.send(SET_CHANNEL)
                sent += 1
        assert sent > 10
        await asyncio.wait_for(require_shaped(session), 20)


async def test_descriptors_run_out(session: LinkSession) -> None:
    client = await LinkClient.open(session.socket_path)
    await client.counters()
    old = resource.prlimit(session.pid, resource.RLIMIT_NOFILE)
    held: list[socket.socket] = []
    try:
        resource.prlimit(session.pid, resource.RLIMIT_NOFILE, (1, old[1]))  # no number is free
        for _ in range(3):
            with pytest.raises(LinkRefused, match=r"Too many open files"):
                held.append(await client.listen(0))
        await client.set_channel(100)  # takes none, and so goes on
        held.append(bare(session))  # waits for better times, and stops nobody else
        await client.set_channel(200)
    finally:
        resource.prlimit(session.pid, resource.RLIMIT_NOFILE, old)
        for one in held:
            one.close()
    await require_shaped(session)
    client.close()


async def test_clients_that_die_in_the_middle(session: LinkSession) -> None:
    async with await LinkClient.open(session.socket_path) as client:
        listener = await client.listen(0)
        before = descriptors(session.pid)
        for request in (COUNTERS, b'{"id": 1, "op": "connect", "agent": 0, "worker": 0}', b"{", b"\0" * 1000):
            for _ in range(20):
                with bare(session) as dying:
                    dying.send(request)
        script = (
            "import os, socket, sys\n"
            "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n"
            'for _ in range(50): s.send(b\'{"id": 1, "op": "connect", "agent": 0, "worker": 0}\')\n'
            "os.kill(os.getpid(), 9)\n"
        )
        killed = await asyncio.create_subprocess_exec(sys.executable, "-c", script, session.socket_path)
        assert await asyncio.wait_for(killed.wait(), 10) == -9
        listener.close()
        await client.counters()
        assert await falls_to(session.pid, before), "what was made for the dead is closed"
    await require_shaped(session)


def test_nobody_else_gets_in(session: LinkSession) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    stranger = (
        "import os, socket, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "try:\n"
        "    s.connect(sys.argv[1]); print('in')\n"
        "except PermissionError:\n"
        "    print('out')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", stranger, session.socket_path], capture_output=True, text=True, timeout=10, check=False
    )
    assert done.stdout == "out\n", done.stderr


def test_starting_and_stopping_leaves_nothing(any_link: tuple[str, str]) -> None:
    def own() -> tuple[int, int]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return descriptors(os.getpid()), len(children)

    start_link(*any_link).stop()  # what the first one loads stays
    before = own()
    helpers, folders, held = [], [], []
    for _ in range(CYCLES):
        with start_link(*any_link, agents=2, workers=1) as session:
            helpers.append(session.pid)
            folders.append(Path(session.socket_path).parent)
            held.append(namespaces_of(session.pid))
    assert own() == before
    assert not [folder for folder in folders if folder.exists()]
    assert all(namespaces.gone() for namespaces in held)
    assert not [pid for pid in helpers if Path(f"/proc/{pid}").exists() and is_helper(pid)]


def is_helper(pid: int) -> bool:
    """Whether this process is (still) a helper, not another that has its number by now."""
    with contextlib.suppress(OSError):
        return b"netem.helper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
