"""A worker at a real socket, and a peer that may send it anything."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self

from cloud.frames import FrameReader, Header
from cloud.reception import Reception
from cloud.sockets import accepting
from cloud.worker import AnyWorker
from models.profiles import ModelProfile

ANSWER_TIMEOUT_S = 10.0
CACHE_BYTES = 200_000
HEDGED_PROFILE = ModelProfile.model_validate(
    {
        "name": "test/fast",
        "kv_bytes": CACHE_BYTES,
        "edge_prefill_ms": 1,
        "quality_basis": "none",
        "modes": {
            "full": {"payload_bytes": CACHE_BYTES, "decode_ms": 30, "quality": 100},
            "prompt": {"payload_bytes": 50, "cloud_prefill_ms": 20, "decode_ms": 30, "quality": 80},
        },
    }
)


@asynccontextmanager
async def serving(
    worker: AnyWorker, max_body_bytes: int, max_connections: int = 8
) -> AsyncIterator[tuple[AnyWorker, tuple[str, int]]]:
    """(worker, its address) while it serves."""
    reception = Reception(worker, max_body_bytes=max_body_bytes, max_connections=max_connections)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    task = asyncio.create_task(reception.run(accepting(listener)))
    try:
        yield worker, listener.getsockname()
    finally:
        task.cancel()
        await asyncio.wait([task])
        listener.close()


class Client:
    """An agent's connection, byte by byte."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.reader = FrameReader(lambda view: self.loop.sock_recv_into(sock, view), 4096)

    @classmethod
    async def open(cls, address: tuple[str, int]) -> Self:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        return cls(sock)

    async def send(self, *pieces: bytes) -> None:
        await self.loop.sock_sendall(self.sock, b"".join(pieces))

    async def frame(self) -> tuple[Header, bytes]:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            header = await self.reader.header()
            return header, await self.reader.small_body(header)

    async def closed(self) -> bool:
        """Whether the worker has hung up."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            try:
                return await self.loop.sock_recv(self.sock, 1) == b""
            except ConnectionError:
                return True

    def hang_up(self, reset: bool = False) -> None:
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class FreeLink:
    """A link on which every grant is given."""

    async def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        pass
