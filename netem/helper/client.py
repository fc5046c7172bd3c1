"""An asyncio client of the helper, for any process of the same user."""

import array
import asyncio
import contextlib
import errno
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from netem.helper import protocol
from netem.link import AgentCounters
from netem.wire import MIN_SHAPED_MBPS

AGAIN_S = 0.05


class LinkLost(ConnectionError):
    """The helper has ended, and with it the link."""


class LinkRefused(RuntimeError):
    """The helper refused a request; the message is its reason."""


class PlaceTaken(LinkRefused):
    """A socket listens in the place of this worker already."""


@dataclass(frozen=True)
class LinkCounters:
    """All traffic of the link so far, and the helper's refusals. `agents` is indexed by the agent's number."""

    agents: list[AgentCounters]
    direct_packets: int
    """Packets that bypassed the shaping; the measurement is valid only if this is 0."""
    refused_connections: int
    refused_requests: int

    def since(self, before: Self) -> Self:
        """The difference to `before`; backlogs are the present ones."""
        agents = [
            replace(
                now,
                hop1_bytes=now.hop1_bytes - then.hop1_bytes,
                hop1_packets=now.hop1_packets - then.hop1_packets,
                hop2_bytes=now.hop2_bytes - then.hop2_bytes,
                hop2_packets=now.hop2_packets - then.hop2_packets,
                hop2_dropped_packets=now.hop2_dropped_packets - then.hop2_dropped_packets,
            )
            for now, then in zip(self.agents, before.agents, strict=True)
        ]
        return replace(
            self,
            agents=agents,
            direct_packets=self.direct_packets - before.direct_packets,
            refused_connections=self.refused_connections - before.refused_connections,
            refused_requests=self.refused_requests - before.refused_requests,
        )


class LinkClient:
    """One connection to the helper. Concurrent requests are serialized.

    Every request raises LinkLost if the helper has ended, and LinkRefused if the helper refuses it.
    """

    def __init__(self, connection: socket.socket, socket_path: str, patience_s: float) -> None:
        """Use `open` to make one."""
        self._connection = connection
        self._socket_path = socket_path
        self._patience_s = patience_s
        self._lock = asyncio.Lock()
        self._last_id = 0

    @classmethod
    async def open(cls, socket_path: str, patience_s: float = 0.0) -> Self:
        """Connect to the helper of a `session.LinkSession`.

        Args:
            patience_s: if the helper has ended, requests wait so long for another one at this path. All requests may
                be made twice.

        Raises:
            LinkLost: no helper listens there.
        """
        return cls(await _connected(socket_path, patience_s), socket_path, patience_s)

    async def listen(self, worker: int) -> socket.socket:
        """A listening, non-blocking TCP socket for a cloud worker; the caller accepts its connections.

        Raises PlaceTaken: there is one already.
        """
        try:
            return await self._ask_for_socket({"op": "listen", "worker": worker})
        except LinkRefused as refused:
            if str(refused).endswith(os.strerror(errno.EADDRINUSE)):
                raise PlaceTaken(str(refused)) from None
            raise

    async def connect(self, agent: int, worker: int) -> socket.socket:
        """A connected, non-blocking TCP socket through the agent's own link; the worker must be listening.

        Raises OSError if the connection fails, e.g. ConnectionRefusedError.
        """
        connection = await self._ask_for_socket({"op": "connect", "agent": agent, "worker": worker})
        try:
            await _writable(connection)
            failure = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                raise OSError(failure, f"agent {agent} to worker {worker}: {os.strerror(failure)}")
        except BaseException:
            connection.close()
            raise
        return connection

    async def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        """Set these agents' grants (link-layer Mbit/s); the others keep theirs.

        A grant below the kernel's minimum (for example in an outage, among many agents) is raised to it.
        """
        rounded = {str(agent): max(round(mbps, 6), MIN_SHAPED_MBPS) for agent, mbps in grants_mbps.items()}
        await self._ask({"op": "grants", "mbps": rounded})

    async def set_connected(self, agent: int, connected: bool) -> None:
        """Cut an agent's link, so that nothing passes in either direction, or restore it."""
        await self._ask({"op": "connected", "agent": agent, "connected": connected})

    async def set_channel(self, mbps: float) -> None:
        """Change the uplink's true rate (link-layer Mbit/s)."""
        await self._ask({"op": "channel", "mbps": mbps})

    async def counters(self) -> LinkCounters:
        """Read the counters of both hops."""
        found = await self._ask({"op": "counters"})
        found["agents"] = [AgentCounters(*numbers) for numbers in found["agents"]]
        return LinkCounters(**found)

    async def used_bytes(self) -> int:
        """Bytes of Ethernet frames that went through the shared hop so far."""
        return await self._ask({"op": "used"})

    async def until_lost(self) -> None:
        """Return when the helper has ended. Occupies the client meanwhile: use a separate one.

        Connections through a lost link aren't reset, they fall silent. Code that waits on one without a timeout should
        wait for this as well.
        """
        async with self._lock:
            with contextlib.suppress(OSError):  # LinkLost is one
                while True:
                    await self._receive()

    def close(self) -> None:
        """Close the connection; sockets obtained through it stay open."""
        self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _ask(self, request: dict[str, Any]) -> Any:
        result, attached = await self._exchange(request)
        if attached:
            attached.close()
        return result

    async def _ask_for_socket(self, request: dict[str, Any]) -> socket.socket:
        _, attached = await self._exchange(request)
        if not attached:
            raise LinkRefused("the helper answered without a socket; this process may have too many open files")
        return attached

    async def _exchange(self, request: dict[str, Any]) -> tuple[Any, socket.socket | None]:
        loop = asyncio.get_running_loop()
        async with self._lock:
            self._last_id += 1
            message = protocol.encode({"id": self._last_id, **request})
            patient_until_s = loop.time() + self._patience_s
            while True:
                try:
                    await loop.sock_sendall(self._connection, message)
                    answer, attached = await self._answer()
                    # Another helper is there, and its link soon will be.
                    if answer["ok"] or answer["error"] != protocol.NOT_BUILT or loop.time() >= patient_until_s:
                        break
                    await asyncio.sleep(AGAIN_S)
                except OSError as error:
                    if not self._patience_s:
                        raise LinkLost(f"the helper is gone: {error}") from error
                    self._connection.close()
                    self._connection = await _connected(self._socket_path, self._patience_s)
        if not answer["ok"]:
            raise LinkRefused(answer["error"])
        return answer["result"], attached

    async def _answer(self) -> tuple[dict[str, Any], socket.socket | None]:
        """The answer to the last request. That to one whose caller was cancelled may still be queued before it."""
        while True:
            answer, attached = await self._receive()
            if answer["id"] in (None, self._last_id):
                return answer, attached
            if attached:
                attached.close()

    async def _receive(self) -> tuple[dict[str, Any], socket.socket | None]:
        descriptor_bytes = array.array("i").itemsize
        while True:
            with contextlib.suppress(BlockingIOError):
                message, ancillary, _, _ = self._connection.recvmsg(
                    protocol.MAX_ANSWER_BYTES, socket.CMSG_SPACE(descriptor_bytes), socket.MSG_CMSG_CLOEXEC
                )
                break
            await _readable(self._connection)
        if not message:
            raise LinkLost("the helper has ended")
        attached = None
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= descriptor_bytes:
                attached = socket.socket(fileno=array.array("i", data[:descriptor_bytes])[0])
                attached.setblocking(False)
        return json.loads(message), attached


async def _connected(socket_path: str, patience_s: float) -> socket.socket:
    """A connection to the helper there, or to one that comes within `patience_s`. Raises LinkLost."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + patience_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            await loop.sock_connect(connection, socket_path)
            return connection
        except OSError as error:
            connection.close()
            if loop.time() >= until_s:
                raise LinkLost(f"no helper at {socket_path}: {error}") from error
        except BaseException:
            connection.close()
            raise
        await asyncio.sleep(AGAIN_S)


async def _readable(watched: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(watched, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(watched)


async def _writable(watched: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(watched, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(watched)
