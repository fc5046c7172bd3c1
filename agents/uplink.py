"""An agent's end of the uplink: its connections to the cloud workers, and their replies."""

import asyncio
import contextlib
import math
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

from agents.edge import Payload
from cloud.frames import (
    CRC,
    LENGTH,
    UNREADABLE,
    CloudStages,
    Disconnected,
    FrameError,
    FrameReader,
    Header,
    Kind,
    small_frame,
)
from cloud.sockets import close_socket
from kvcache.crc32 import crc32
from models.clock import now_s

Stop = asyncio.Future[None] | None
"""Done when a request is no longer wanted; None: it always is."""

MAX_ANSWER_BYTES = 64 * 1024
SEND_BYTES = 64 * 1024


class Refused(Exception):
    """The cloud worker refused a request; the message is its reason."""


class ConnectionLost(Exception):
    """The connection to a cloud worker broke with a request outstanding."""


@dataclass(frozen=True, slots=True)
class Hedge:
    """A small payload sent ahead of a request's main one; the worker answers from it if the main one would be late.

    Attributes:
        mode: its code in the run's list of modes of that model.
        due_s: when an answer from it must be there; default: with the request's.
    """

    mode: int
    payload: Payload
    due_s: float | None = None

    def header(self, header: Header) -> Header:
        """The hedge's own header, made from its request's."""
        due_s = header.deadline_s if self.due_s is None else self.due_s
        body_bytes = self.payload.size
        return replace(header, kind=Kind.HEDGE, mode=self.mode, body_bytes=body_bytes, chunked=False, deadline_s=due_s)


@dataclass(slots=True)
class Delivery:
    """A sent request: futures of the worker's receipt and answer.

    Both futures raise Refused or ConnectionLost. A receipt with the hedge's mode means that the worker answers from it.

    Attributes:
        sent_bytes: payload bytes sent, without the hedge; less than the payload if the rest was withdrawn.
        handshake_ms: the time to open a connection; 0 on a warm one.
        first_token_s: when the answer's first token came, on the loop's clock; NaN where it came with the answer.
    """

    receipt: asyncio.Future[CloudStages]
    answer: asyncio.Future[CloudStages]
    sent_bytes: int = 0
    handshake_ms: float = 0.0
    first_token_s: float = math.nan


class Uplink(Protocol):
    """Sends one agent's requests, one at a time."""

    async def send(
        self, worker: int, header: Header, payload: Payload, hedge: Hedge | None = None, stop: Stop = None
    ) -> Delivery:
        """Send a request; stops early if the worker answers from the hedge, or once `stop` is done.

        A request that was stopped gets no answer; the connection goes on. Raises ConnectionLost.
        """
        ...

    def close(self, reason: str) -> None:
        """Requests on the way fail with ConnectionLost for this reason; later ones open new connections."""
        ...


class SocketUplink:
    """TCP connections to the cloud workers, each opened by `connect`.

    Args:
        warm: True keeps one connection per worker for all requests (reopened if it breaks); False opens one for each
            request and closes it with the answer.
    """

    def __init__(self, connect: Callable[[int], Awaitable[socket.socket]], warm: bool = True) -> None:
        self._connect = connect
        self._warm = warm
        self._connections: dict[int, _Connection] = {}
        self._passing: set[_Connection] = set()

    async def open(self, workers: int) -> None:
        """Connect to every worker before the run, if connections are warm."""
        for worker in range(workers if self._warm else 0):
            with contextlib.suppress(ConnectionLost):  # it is away for the moment; the first request will try again
                self._connections[worker] = await self._opened(worker)

    async def send(
        self, worker: int, header: Header, payload: Payload, hedge: Hedge | None = None, stop: Stop = None
    ) -> Delivery:
        connection, handshake_ms = self._connections.get(worker), 0.0
        if connection is None or connection.closed:
            began_s = now_s()
            connection = await self._opened(worker)
            handshake_ms = (now_s() - began_s) * 1e3
            if self._warm:
                self._connections[worker] = connection
        delivery = await connection.send(header, payload, hedge, stop)
        delivery.handshake_ms = handshake_ms
        if not self._warm:
            self._close_when_answered(connection, delivery)
        return delivery

    def close(self, reason: str = "connection closed") -> None:
        """Close all connections; requests on them fail with ConnectionLost for this reason."""
        for connection in [*self._connections.values(), *self._passing]:
            connection.close(reason)
        self._connections.clear()

    async def _opened(self, worker: int) -> "_Connection":
        try:
            return _Connection(await self._connect(worker), f"worker {worker}")
        except OSError as error:
            raise ConnectionLost(f"worker {worker}: {error.strerror or error}") from None

    def _close_when_answered(self, connection: "_Connection", delivery: Delivery) -> None:
        """Close the connection with the answer, or once the request is abandoned."""

        def close(_: object) -> None:
            self._passing.discard(connection)
            connection.close()

        self._passing.add(connection)
        delivery.answer.add_done_callback(close)
        delivery.receipt.add_done_callback(lambda receipt: close(receipt) if receipt.cancelled() else None)


class _Connection:
    """One TCP connection with any number of answers outstanding.

    Request ids on the wire are numbered per connection, so that a late answer can't match another run's request.
    """

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._sock = sock
        self._peer = peer
        self._deliveries: dict[int, Delivery] = {}
        self._sending: asyncio.Task[None] | None = None
        self._numbers = count()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read())

    @property
    def closed(self) -> bool:
        return self._lost.done()

    async def send(self, header: Header, payload: Payload, hedge: Hedge | None, stop: Stop) -> Delivery:
        if self._sending is not None:  # the last piece of a withdrawn request
            await asyncio.wait({self._sending})
        loop = asyncio.get_running_loop()
        delivery = Delivery(loop.create_future(), loop.create_future())
        number = next(self._numbers)
        self._deliveries[number] = delivery
        header = replace(header, request_id=number, chunked=hedge is not None or stop is not None)
        self._sending = asyncio.create_task(self._transmit(header, payload, hedge, delivery, stop))
        try:
            # While a write is blocked, the peer may close the connection or answer from the hedge; only the reading
            # side notices.
            awaited: set[asyncio.Future[Any]] = {self._sending, self._lost, delivery.receipt}
            if stop is not None:
                awaited.add(stop)
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # Half a frame is on the wire, so this connection can't be used any more.
            self.close()
            raise
        if self._lost.done():
            await delivery.receipt  # raises the connection's error
        return delivery

    async def _transmit(
        self, header: Header, payload: Payload, hedge: Hedge | None, delivery: Delivery, stop: Stop
    ) -> None:
        try:
            await self._write(header, payload, hedge, delivery, stop)
        except OSError as error:
            self.close(str(error))
        except Exception as error:  # encoding failed with half of the frame sent
            self.close(f"{type(error).__name__}: {error}")

    async def _write(
        self, header: Header, payload: Payload, hedge: Hedge | None, delivery: Delivery, stop: Stop
    ) -> None:
        """Write a frame in as few segments as possible: header and checksum share segments with the payload."""
        loop = asyncio.get_running_loop()
        if hedge is not None:
            await loop.sock_sendall(self._sock, await _hedge_frame(header, hedge))
        checksum = 0
        held = bytearray(header.pack())
        async for piece in payload.pieces():
            # A receipt before everything is sent: the worker answers from the hedge, or has refused.
            if header.chunked and (delivery.receipt.done() or (stop is not None and stop.done())):
                held += LENGTH.pack(0)
                break
            checksum = crc32(piece, checksum)
            if header.chunked:
                held += LENGTH.pack(len(piece))
            held += piece
            delivery.sent_bytes += len(piece)
            if len(held) >= SEND_BYTES:
                await loop.sock_sendall(self._sock, held)
                held = bytearray()
        await loop.sock_sendall(self._sock, held + CRC.pack(checksum))

    def close(self, reason: str = "connection closed") -> None:
        if not self._lost.done():
            self._lost.set_result(None)
            self._reading.cancel()
            if self._sending is not None and self._sending is not asyncio.current_task():
                self._sending.cancel()
            close_socket(self._sock)
            self._fail(ConnectionLost(f"{self._peer}: {reason}"))

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        reader = FrameReader(lambda view: loop.sock_recv_into(self._sock, view), MAX_ANSWER_BYTES)
        try:
            while True:
                header = await reader.header()
                self._settle(header, await reader.small_body(header))
        except (OSError, Disconnected, FrameError):
            self.close()

    def _settle(self, header: Header, body: bytes) -> None:
        delivery = self._deliveries.get(header.request_id)
        if header.kind is Kind.REFUSAL:
            refused = Refused(body.decode("ascii", "replace"))
            if header.request_id == UNREADABLE:
                self._fail(refused)  # the worker couldn't read the request's id
            elif delivery is not None:
                self._fail(refused, header.request_id)
        elif delivery is not None and header.kind is Kind.FIRST_TOKEN:
            delivery.first_token_s = now_s()
        elif delivery is not None:
            future = delivery.receipt if header.kind is Kind.RECEIPT else delivery.answer
            if not future.done():
                future.set_result(CloudStages.unpack(body))
            if header.kind is Kind.ANSWER:
                del self._deliveries[header.request_id]

    def _fail(self, error: Exception, number: int | None = None) -> None:
        for each in list(self._deliveries) if number is None else [number]:
            delivery = self._deliveries.pop(each)
            for future in (delivery.receipt, delivery.answer):
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # mark it as retrieved: an abandoned request doesn't await it


async def _hedge_frame(header: Header, hedge: Hedge) -> bytes:
    body = b"".join([bytes(piece) async for piece in hedge.payload.pieces()])
    return small_frame(hedge.header(header), body)
