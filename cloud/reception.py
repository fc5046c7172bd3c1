"""A cloud worker's connections, one per agent."""

import asyncio
import socket
from collections.abc import Hashable
from typing import Any

from cloud.frames import (
    MAX_HEDGE_BYTES,
    UNREADABLE,
    CloudStages,
    Disconnected,
    FrameError,
    FrameReader,
    Header,
    Kind,
    small_frame,
)
from cloud.runtime import BadBody, Body, UnknownModel
from cloud.sockets import Accept, close_socket
from cloud.worker import AnyWorker, Job, QueueFull
from models.clock import now_s

# Replies are a few dozen bytes. A peer that doesn't read them for this long would delay the whole queue.
REPLY_TIMEOUT_S = 2.0
ACCEPT_AGAIN_S = 0.05


class Reception:
    """Accepts connections for a worker; refuses and counts frames and connections that are not acceptable.

    Adds to the worker's counts: `refused_<reason>` for frames, `refused_connections`, `failed_accepts`, and `withdrawn`
    for requests cut short by their agent.
    """

    def __init__(self, worker: AnyWorker, max_body_bytes: int, max_connections: int) -> None:
        self._worker = worker
        self._max_body_bytes = max_body_bytes
        self._max_connections = max_connections
        self._connections: set[asyncio.Task[None]] = set()
        self._group: asyncio.TaskGroup | None = None
        self._accepting: asyncio.Task[None] | None = None

    async def run(self, accept: Accept) -> None:
        """Take what `accept` gives and let the worker serve, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._listen(group, accept)
                group.create_task(self._worker.serve_queue())
        finally:
            self._hang_up()

    def move(self, accept: Accept) -> None:
        """Take what `accept` gives from now on, because the link of the one before is gone.

        All connections end, and what is queued is forgotten: nobody waits for it any more.
        """
        assert self._group is not None and self._accepting is not None
        self._accepting.cancel()
        self._hang_up()
        self._worker.forget()
        self._listen(self._group, accept)

    def _listen(self, group: asyncio.TaskGroup, accept: Accept) -> None:
        self._group = group
        self._accepting = group.create_task(self._accept(accept))

    def _hang_up(self) -> None:
        for connection in list(self._connections):
            connection.cancel()

    async def _accept(self, accept: Accept) -> None:
        while True:
            try:
                sock = await accept()
            except OSError:  # out of descriptors, or the peer has closed already
                self._worker.counts["failed_accepts"] += 1
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            if len(self._connections) >= self._max_connections:
                self._worker.counts["refused_connections"] += 1
                sock.close()
                continue
            connection = _Connection(sock, self._worker, self._max_body_bytes)
            task = asyncio.create_task(connection.serve())
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)


class _Connection:
    """One agent's connection."""

    def __init__(self, sock: socket.socket, worker: AnyWorker, max_body_bytes: int) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader(lambda view: self._loop.sock_recv_into(sock, view), max_body_bytes)
        self._writing = asyncio.Lock()
        self._hedged: set[Hashable] = set()

    async def serve(self) -> None:
        """Read frames until the peer closes or sends something else."""
        header: Header | None = None
        try:
            while True:
                header = None
                header = await self._reader.header()
                self._worker.runtime.check(header)
                if header.kind is Kind.REQUEST:
                    await self._take_request(header, now_s())
                elif header.kind is Kind.HEDGE:
                    await self._take_hedge(header, now_s())
                else:
                    raise FrameError("kind", f"a worker takes requests, not {header.kind.name}")
        except Disconnected:
            pass
        except (FrameError, UnknownModel) as error:
            # After a broken frame, the start of the next one is unknown: close the connection.
            reason = error.reason if isinstance(error, FrameError) else "unknown_model"
            self._worker.counts[f"refused_{reason}"] += 1
            try:
                await self._refuse(header or Header(Kind.REFUSAL, UNREADABLE, 0), reason)
            except OSError:
                pass
        except OSError:
            if header is not None:
                self._worker.counts["refused_truncated"] += 1
        finally:
            for key in self._hedged:
                self._worker.withdraw(key)
            close_socket(self._sock)

    async def _take_request(self, header: Header, first_byte_s: float) -> None:
        key = (self, header.request_id)
        body = _Usable(self._worker.runtime.receive(header))
        if not await self._reader.body(header, body.feed):
            self._worker.counts["withdrawn"] += 1
            self._worker.withdraw(key)
            self._hedged.discard(key)
            return
        self._hedged.discard(key)
        try:
            await self._worker.submit(Job(key, header, now_s(), self._reply, body.content(), first_byte_s))
        except QueueFull:
            await self._refuse(header, "queue_full")
        except BadBody as error:
            self._worker.withdraw(key)
            await self._refuse_body(header, error)

    async def _take_hedge(self, header: Header, first_byte_s: float) -> None:
        if header.body_bytes > MAX_HEDGE_BYTES:
            raise FrameError(
                "oversized", f"a hedge of {header.body_bytes} bytes; at most {MAX_HEDGE_BYTES} are accepted"
            )
        body = _Usable(self._worker.runtime.receive(header))
        await self._reader.body(header, body.feed)
        key = (self, header.request_id)
        try:
            self._worker.hold(Job(key, header, now_s(), self._reply, body.content(), first_byte_s))
            self._hedged.add(key)
        except BadBody as error:
            await self._refuse_body(header, error)

    async def _reply(self, kind: Kind, header: Header, stages: CloudStages) -> None:
        await self._send(kind, header, stages.text.encode() if kind is Kind.REFUSAL else stages.pack())

    async def _refuse_body(self, header: Header, error: BadBody) -> None:
        """Refuse a body that can't be used. Its frame was whole, so the connection stays open."""
        self._worker.counts[f"refused_{error.reason}"] += 1
        await self._refuse(header, f"{error.reason}: {error}")

    async def _refuse(self, header: Header, reason: str) -> None:
        await self._send(Kind.REFUSAL, header, reason.encode())

    async def _send(self, kind: Kind, request: Header, body: bytes) -> None:
        frame = small_frame(Header(kind, request.request_id, len(body), request.agent_id), body)
        try:
            async with self._writing, asyncio.timeout(REPLY_TIMEOUT_S):
                await self._loop.sock_sendall(self._sock, frame)
        except TimeoutError:
            self._sock.shutdown(socket.SHUT_RDWR)  # half a frame was sent: `serve` will see the end and close
            raise


class _Usable:
    """Feeds a body until it fails; the rest is read and dropped, so that the next frame can be read."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._error: BadBody | None = None

    def feed(self, piece: memoryview) -> None:
        if self._error is None:
            try:
                self._body.feed(piece)
            except BadBody as error:
                self._error = error

    def content(self) -> Any:
        """The decoded body. Raises BadBody."""
        if self._error is not None:
            raise self._error
        return self._body.finish()
