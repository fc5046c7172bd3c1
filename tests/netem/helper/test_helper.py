"""The helper's door and its life: who may ask what, and that nothing is left behind however it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from netem.helper import protocol
from netem.helper.client import LinkClient, LinkLost, LinkRefused
from netem.helper.session import LinkSession, LinkUnavailable
from tests.support.commands import REPOSITORY
from tests.support.processes import alive, namespaces_of, wait_until


@pytest.fixture
def raw(session: LinkSession) -> Iterator[socket.socket]:
    """A bare connection to the helper."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(session.socket_path)
        yield connection


def ask(connection: socket.socket, message: bytes) -> dict[str, object]:
    connection.send(message)
    return json.loads(connection.recv(protocol.MAX_ANSWER_BYTES))


BAD_REQUESTS = {
    "not JSON": b"\xff\x00 nonsense",
    "not an object": b"[1, 2]",
    "deeply nested": b"[" * 50_000,
    "empty object": b"{}",
    "unknown operation": b'{"id": 1, "op": "shell", "command": "id"}',
    "unknown field": b'{"id": 1, "op": "counters", "verbose": true}',
    "rate of zero": b'{"id": 1, "op": "channel", "mbps": 0}',
    "rate not a number": b'{"id": 1, "op": "channel", "mbps": NaN}',
    "rate infinite": b'{"id": 1, "op": "channel", "mbps": 1e999}',
    "rate too high": b'{"id": 1, "op": "channel", "mbps": 10001}',
    "no such agent": b'{"id": 1, "op": "grants", "mbps": {"0": 5, "4": 5}}',
    "negative agent": b'{"id": 1, "op": "connect", "agent": -1, "worker": 0}',
    "no such worker": b'{"id": 1, "op": "listen", "worker": 2}',
    "second build": b'{"id": 1, "op": "build", "agents": 1, "workers": 1, "channel_mbps": 1, "grant_mbps": 1}',
    "oversized": b'{"id": 1, "op": "counters"' + b" " * protocol.MAX_REQUEST_BYTES + b"}",
}


def test_bad_requests_are_refused_and_the_helper_serves_on(raw: socket.socket) -> None:
    for count, (what, message) in enumerate(BAD_REQUESTS.items(), start=1):
        refused = ask(raw, message)
        assert refused["ok"] is False, what
        assert refused["error"], what
        counters = ask(raw, b'{"id": 2, "op": "counters"}')
        assert counters["ok"] is True, what
        assert counters["result"]["refused_requests"] == count, what  # type: ignore[index]


def test_descriptors_sent_along_are_not_kept(session: LinkSession, raw: socket.socket) -> None:
    descriptors = Path(f"/proc/{session.pid}/fd")
    before = len(list(descriptors.iterdir()))
    socket.send_fds(raw, [b'{"id": 1, "op": "counters"}'], [0, 1, 2])
    assert json.loads(raw.recv(protocol.MAX_ANSWER_BYTES))["ok"]
    assert len(list(descriptors.iterdir())) == before


def test_client_that_never_reads_is_dropped(session: LinkSession) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf:
        deaf.settimeout(5)
        deaf.connect(session.socket_path)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100_000):
                deaf.send(b'{"id": 1, "op": "channel", "mbps": 200}')
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.connect(session.socket_path)
        assert ask(other, b'{"id": 1, "op": "counters"}')["ok"]


async def test_largest_request_fits(make_session: Callable[..., LinkSession]) -> None:
    session = make_session(agents=256)
    grants = {agent: 1234.567890123 + agent for agent in range(256)}
    assert len(protocol.encode({str(agent + 768): round(mbps, 6) for agent, mbps in grants.items()})) * 4 < 1 << 16
    async with await LinkClient.open(session.socket_path) as client:
        await client.set_grants(grants)
        assert len((await client.counters()).agents) == 256


async def test_tasks_may_share_a_client(client: LinkClient) -> None:
    refused = client.set_grants({9: 1.0})
    answers = await asyncio.gather(
        *(client.counters() for _ in range(20)), refused, client.set_channel(10), return_exceptions=True
    )
    assert [type(answer) for answer in answers[20:]] == [LinkRefused, type(None)]
    assert all(len(answer.agents) == 4 for answer in answers[:20])  # type: ignore[union-attr]


async def test_cancelled_request_does_not_confuse_the_next(client: LinkClient) -> None:
    for delay_s in (0.0, 1e-5, 1e-4, 1e-3):
        task = asyncio.create_task(client.counters())
        await asyncio.sleep(delay_s)
        task.cancel()
        with await client.listen(0) as listener:
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def test_door_is_closed_to_other_users(session: LinkSession) -> None:
    path = Path(session.socket_path)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    # Even with the file modes out of the way the helper looks at who connects.
    path.parent.chmod(0o755)
    path.chmod(0o666)
    stranger = (
        "import os, socket, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1])\n"
        "try:\n"
        '    s.send(b\'{"id": 1, "op": "counters"}\'); print(s.recv(1000))\n'
        "except OSError:\n"
        "    print(b'')\n"
    )
    done = subprocess.run([sys.executable, "-c", stranger, str(path)], capture_output=True, text=True, timeout=10)
    assert done.stdout == "b''\n", done.stderr
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as own:
        own.connect(session.socket_path)
        counters = ask(own, b'{"id": 1, "op": "counters"}')
    assert counters["result"]["refused_connections"] == 1  # type: ignore[index]


def test_stop_is_idempotent_and_leaves_nothing(make_session: Callable[..., LinkSession]) -> None:
    session = make_session()
    namespaces = namespaces_of(session.pid)
    session.stop()
    session.stop()
    assert not alive(session.pid)
    assert not Path(session.socket_path).parent.exists()
    assert namespaces.gone()


async def test_killed_helper_leaves_nothing(make_session: Callable[..., LinkSession]) -> None:
    session = make_session()
    namespaces = namespaces_of(session.pid)
    client, watcher = await LinkClient.open(session.socket_path), await LinkClient.open(session.socket_path)
    watching = asyncio.create_task(watcher.until_lost())
    await asyncio.sleep(0.05)
    assert not watching.done()
    if session.kind == "kernel":
        assert len(namespaces.names) >= 6  # four agents, base station, cloud
    os.kill(session.pid, signal.SIGKILL)
    with pytest.raises(LinkLost):
        await client.counters()
    await asyncio.wait_for(watching, 5)
    client.close()
    watcher.close()
    session.stop()
    assert not alive(session.pid)
    assert namespaces.gone()
    with pytest.raises(LinkLost):
        await LinkClient.open(session.socket_path)


@pytest.mark.parametrize("in_thread", [False, True], ids=["main thread", "other thread"])
def test_helper_ends_with_its_killed_launcher(
    make_session: Callable[..., LinkSession], any_link: tuple[str, str], in_thread: bool
) -> None:
    make_session().stop()  # skips here if the machine can't
    script = (
        "import sys, threading, time\n"
        "from netem.helper.session import LinkSession\n"
        "def launch():\n"
        "    global s\n"
        "    s = LinkSession.start(sys.argv[1], privilege=sys.argv[2], agents=2, workers=1, channel_mbps=1,"
        " grant_mbps=1)\n"
        "if sys.argv[3] == 'True':\n"
        "    t = threading.Thread(target=launch); t.start(); t.join()\n"
        "else:\n"
        "    launch()\n"
        "time.sleep(0.3)\n"
        "print(s.pid, s.socket_path, flush=True); time.sleep(60)\n"
    )
    arguments = [sys.executable, "-c", script, *any_link, str(in_thread)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as launcher:
        assert launcher.stdout
        pid, path = launcher.stdout.readline().split()
        assert alive(int(pid)), "the helper must outlast the thread that started it"
        namespaces = namespaces_of(int(pid))
        launcher.kill()
    assert wait_until(lambda: not alive(int(pid)))
    assert wait_until(namespaces.gone)
    assert not Path(path).parent.exists()


def test_interrupt_is_left_to_the_driver(session: LinkSession) -> None:
    os.kill(session.pid, signal.SIGINT)
    time.sleep(0.1)
    assert alive(session.pid)
    assert os.getsid(session.pid) != os.getsid(0)
    os.kill(session.pid, signal.SIGTERM)
    assert wait_until(lambda: not alive(session.pid))


def test_numbers_out_of_bounds_are_refused_at_once() -> None:
    for wrong in (
        {"agents": 0},
        {"agents": 1025},
        {"workers": 65},
        {"grant_mbps": 0.0},
        {"channel_mbps": float("inf")},
    ):
        settings = {"agents": 1, "workers": 1, "channel_mbps": 1.0, "grant_mbps": 1.0} | wrong
        with pytest.raises(ValueError):
            LinkSession.start("paced", **settings)  # type: ignore[arg-type]


def test_auto_falls_back_to_the_paced_link_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netem.helper.session._privileges", lambda: ["sudo"])
    monkeypatch.setenv("PATH", str(REPOSITORY / "no-such-folder"))
    with LinkSession.start(agents=1, workers=1, channel_mbps=1.0, grant_mbps=1.0) as session:
        assert session.kind == "paced"
        assert "sudo" in (session.fallback_reason or "")
    with pytest.raises(LinkUnavailable, match="sudo"):
        LinkSession.start("kernel", agents=1, workers=1, channel_mbps=1.0, grant_mbps=1.0)


def test_sudo_is_asked_not_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("stands in for sudo with a script that has to be root already")
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\n[ "$1 $2" = "-n --" ] || exit 1\nshift 2\n"$@"\n')
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    try:
        session = LinkSession.start("kernel", privilege="sudo", agents=1, workers=1, channel_mbps=1.0, grant_mbps=1.0)
    except LinkUnavailable as error:
        pytest.skip(f"root can't shape links here: {error}")
    assert session.privilege == "sudo"
    assert session.pid != session._process.pid
    session.stop()
    assert not alive(session.pid)


def test_read_only_settings_are_no_kernel_link() -> None:
    """As in many containers: the link would be built, and every connection on it would hang."""
    if os.geteuid() != 0:
        pytest.skip("mounting /proc/sys read-only needs root")
    script = (
        "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True)\n"
        "CLONE_NEWNS, MS_BIND, MS_REMOUNT, MS_RDONLY, MS_PRIVATE_ALL = 0x20000, 4096, 32, 1, (1 << 18) | 16384\n"
        "proc = b'/proc/sys'\n"
        "assert libc.unshare(CLONE_NEWNS) == 0 and libc.mount(None, b'/', None, MS_PRIVATE_ALL, None) == 0\n"
        "assert libc.mount(proc, proc, None, MS_BIND, None) == 0\n"
        "assert libc.mount(None, proc, None, MS_BIND | MS_REMOUNT | MS_RDONLY, None) == 0, ctypes.get_errno()\n"
        "from netem.helper.session import LinkSession\n"
        "with LinkSession.start('auto', agents=1, workers=1, channel_mbps=1, grant_mbps=1) as link:\n"
        "    print(link.kind, link.fallback_reason)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("paced") and "/proc/sys is read-only" in done.stdout


def test_without_any_privilege_the_reason_can_be_acted_on() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has privilege to give up")
    script = (
        "import ctypes\n"
        "for capability in range(41):\n"
        "    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)\n"  # PR_CAPBSET_DROP: gone from whatever starts next
        "from netem.helper.session import LinkSession\n"
        "try:\n"
        "    LinkSession.start('kernel', privilege='root', agents=1, workers=1, channel_mbps=1.0, grant_mbps=1.0)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
        "with LinkSession.start(agents=1, workers=1, channel_mbps=1.0, grant_mbps=1.0) as s:\n"
        "    print(s.kind, s.privilege, s.fallback_reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False
    )
    refusal, chosen = done.stdout.strip().splitlines()
    assert refusal.startswith("LinkUnavailable")
    assert "run as root" in refusal
    assert chosen == "kernel userns None" or chosen.startswith("paced")


async def test_a_killed_helper_is_replaced_and_patient_clients_find_the_new_one() -> None:
    with LinkSession.start("paced", agents=2, workers=1, channel_mbps=20, grant_mbps=10) as session:
        patient = await LinkClient.open(session.socket_path, patience_s=60)
        impatient = await LinkClient.open(session.socket_path)
        first = session.pid
        os.kill(first, signal.SIGKILL)
        asking = asyncio.create_task(patient.used_bytes())
        building = session._build

        def build_late(request: protocol.Build) -> None:
            time.sleep(0.3)  # the helper is there by now, and is asked
            building(request)

        with patch.object(session, "_build", build_late):
            await asyncio.to_thread(session.restart)
        assert await asking == 0 and session.pid != first
        with pytest.raises(LinkLost):
            await impatient.used_bytes()
        with await patient.listen(0) as listener, await patient.connect(1, 0) as sock:
            accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
            accepted.close()
            assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"", "the link carries"
        patient.close()
        impatient.close()
        folder = Path(session.socket_path).parent
    assert not folder.exists() and not alive(session.pid)
