"""The relay: lets agents and workers of other nodes take part in the emulated link, which is all on one node.

To an agent it hands the agent's own socket of the link, to a worker the connections that come to its place in the
emulated cloud. It needs no privilege: sockets are the helper's, bytes are moved by the kernel (`splice`).
"""

import asyncio
import json
import socket
import time
from collections import Counter, OrderedDict, deque

from netem.helper.client import LinkClient, LinkRefused
from netem.relay import protocol
from netem.relay.protocol import ANY, Hello, HelloError, Role
from netem.relay.splice import Pipes, join

HELLO_S = 5.0
MAX_PENDING = 256  # connections without a whole hello; the oldest goes when one more comes
MAX_STANDBY = 64  # of one worker
STANDBY_S = 5.0  # how long a connection waits for a worker that isn't there
BUFFER_BYTES = 2**17
BACKLOG = 1024
ACCEPT_AGAIN_S = 0.05
SILENT_S = 30.0  # of a station connection, whose owner asks for the time every few seconds


class Relay:
    """Serves one run's link until cancelled.

    `counts` has `agents`, `workers`, `stations` (connections so far), `up_bytes`, `down_bytes` (of connections that
    have ended) and `refused_<reason>`: `magic`, `version`, `role`, `token`, `silent` (no whole hello in time),
    `crowded` (pushed out by later ones), `limit` (too many connections), `link` (the helper refused), `request`.

    Args:
        limit: the most connections at once that have shown the token.
    """

    def __init__(self, link: LinkClient, token: bytes, limit: int) -> None:
        self._link = link
        self._token = token
        self._limit = limit
        self.counts: Counter[str] = Counter()
        self._pending: OrderedDict[asyncio.Task[None], None] = OrderedDict()
        self._serving: set[asyncio.Task[None]] = set()
        self._pipes = Pipes()
        self._standby: dict[int, deque[socket.socket]] = {}
        self._arrived = asyncio.Condition()
        self._listening: dict[int, asyncio.Task[None]] = {}
        self._reports: dict[tuple[int, int], dict] = {}

    async def run(self, listener: socket.socket) -> None:
        """Accept on `listener` (non-blocking) until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    sock, _ = await loop.sock_accept(listener)
                except OSError:  # out of descriptors, or the peer has gone already
                    self.counts["failed_accepts"] += 1
                    await asyncio.sleep(ACCEPT_AGAIN_S)
                    continue
                if len(self._pending) >= MAX_PENDING:
                    oldest, _ = self._pending.popitem(last=False)
                    oldest.cancel()
                    self.counts["refused_crowded"] += 1
                task = asyncio.create_task(self._greet(sock))
                self._pending[task] = None
                task.add_done_callback(self._forget)
        finally:
            for task in [*self._pending, *self._serving, *self._listening.values()]:
                task.cancel()
            for waiting in self._standby.values():
                for each in waiting:
                    each.close()
            self._pipes.close()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._pending.pop(task, None)
        self._serving.discard(task)

    async def _greet(self, sock: socket.socket) -> None:
        """One connection, from its hello on."""
        kept = False
        try:
            hello = await self._hello(sock)
            if hello is None:
                return
            task = asyncio.current_task()
            assert task is not None
            self._pending.pop(task, None)
            if len(self._serving) >= self._limit:
                await self._refuse(sock, "limit", f"the relay serves {self._limit} connections already")
                return
            self._serving.add(task)
            kept = await self._serve(hello, sock)
        except (OSError, EOFError):
            pass  # it has gone
        finally:
            if not kept:
                sock.close()

    async def _hello(self, sock: socket.socket) -> Hello | None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(HELLO_S):
                return Hello.unpack(await exactly(sock, protocol.HELLO.size), self._token)
        except TimeoutError:
            self.counts["refused_silent"] += 1
        except EOFError:
            self.counts["refused_short"] += 1
        except HelloError as error:
            self.counts[f"refused_{error}"] += 1
        return None

    async def _serve(self, hello: Hello, sock: socket.socket) -> bool:
        """Whether the socket is somebody else's from now on, who closes it."""
        match hello.role:
            case Role.AGENT:
                return await self._serve_agent(hello, sock)
            case Role.WORKER:
                return await self._serve_worker(hello.worker, sock)
            case Role.STATION:
                self.counts["stations"] += 1
                await self._serve_station(hello, sock)
            case Role.STATUS:
                await send(sock, protocol.OK)
                status = {"counts": dict(self.counts), "reports": list(self._reports.values())}
                document = json.dumps(status).encode()
                await send(sock, protocol.LENGTH.pack(len(document)) + document)
        return False

    async def _serve_agent(self, hello: Hello, sock: socket.socket) -> bool:
        try:
            far = await self._link.connect(hello.agent, hello.worker)
        except (LinkRefused, OSError) as error:
            await self._refuse(sock, "link", str(error))
            return False
        try:
            await send(sock, protocol.OK)
        except BaseException:
            far.close()
            raise
        self.counts["agents"] += 1
        await self._join(sock, far)
        return True

    async def _serve_worker(self, worker: int, sock: socket.socket) -> bool:
        """Keep the connection until one to this worker comes; listen in its place in the emulated cloud."""
        waiting = self._standby.setdefault(worker, deque())
        if len(waiting) >= MAX_STANDBY:
            await self._refuse(sock, "limit", f"{MAX_STANDBY} connections of worker {worker} wait already")
            return False
        if worker not in self._listening:
            try:
                listener = await self._link.listen(worker)
            except LinkRefused as error:
                await self._refuse(sock, "link", str(error))
                return False
            if worker in self._listening:  # another connection was faster
                listener.close()
            else:
                self._listening[worker] = asyncio.create_task(self._accept_for(worker, listener))
        await send(sock, protocol.OK)
        self.counts["workers"] += 1
        waiting.append(sock)
        async with self._arrived:
            self._arrived.notify_all()
        return True

    async def _accept_for(self, worker: int, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    near, _ = await loop.sock_accept(listener)
                except OSError:
                    self.counts["failed_accepts"] += 1
                    await asyncio.sleep(ACCEPT_AGAIN_S)
                    continue
                near.setblocking(False)
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if len(self._serving) >= self._limit:
                    self.counts["refused_limit"] += 1
                    near.close()
                    continue
                task = asyncio.create_task(self._pass_on(worker, near))
                self._serving.add(task)
                task.add_done_callback(self._forget)

    async def _pass_on(self, worker: int, near: socket.socket) -> None:
        """Join a connection that has come to a worker's place with one that the worker has waiting."""
        try:
            async with asyncio.timeout(STANDBY_S):
                far = await self._next_standby(worker)
        except TimeoutError:
            self.counts["refused_no_worker"] += 1
            near.close()
            return
        except BaseException:
            near.close()
            raise
        await self._join(near, far)

    async def _next_standby(self, worker: int) -> socket.socket:
        """A connection of the worker that is still open."""
        waiting = self._standby[worker]
        while True:
            async with self._arrived:
                await self._arrived.wait_for(lambda: waiting)
                sock = waiting.popleft()
            try:
                if not _open(sock):
                    raise ConnectionResetError
                await send(sock, protocol.GO)
            except OSError:
                sock.close()
                continue
            return sock

    async def _join(self, near: socket.socket, far: socket.socket) -> None:
        up, down = await join(self._pipes, near, far)
        self.counts["up_bytes"] += up
        self.counts["down_bytes"] += down

    async def _refuse(self, sock: socket.socket, kind: str, reason: str) -> None:
        self.counts[f"refused_{kind}"] += 1
        text = reason.encode("ascii", "replace")[:500]
        await send(sock, protocol.NO + protocol.REASON.pack(len(text)) + text)

    async def _serve_station(self, hello: Hello, sock: socket.socket) -> None:
        await send(sock, protocol.OK)
        buffer = bytearray(protocol.LARGEST_PIECE)
        while True:
            try:
                async with asyncio.timeout(SILENT_S):
                    kind = await exactly(sock, 1)
                    now = protocol.CLOCK.pack(time.monotonic())
                    if kind == b"t":
                        await send(sock, now)
                        continue
                    (size,) = protocol.LENGTH.unpack(await exactly(sock, protocol.LENGTH.size))
                    most = protocol.MAX_REPORT_BYTES if kind == b"r" else protocol.MAX_PROBE_BYTES
                    if kind not in b"udr" or size > most:
                        self.counts["refused_request"] += 1
                        return
                    if kind == b"r":
                        self._reports[hello.worker, 0 if hello.worker != ANY else hello.agent] = json.loads(
                            await exactly(sock, size)
                        )
                    elif kind == b"u":
                        await send(sock, protocol.RATE.pack(*await receive_timed(sock, size, buffer)))
                    else:
                        await send_many(sock, size, buffer)
            except (TimeoutError, ValueError):
                self.counts["refused_request"] += 1
                return


def _open(sock: socket.socket) -> bool:
    """Whether the peer of an idle connection, which sends nothing, is still there."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True


async def exactly(sock: socket.socket, size: int) -> bytes:
    """The next `size` bytes. Raises EOFError: the connection has ended before."""
    loop = asyncio.get_running_loop()
    found = bytearray()
    while len(found) < size:
        piece = await loop.sock_recv(sock, min(size - len(found), protocol.LARGEST_PIECE))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)


async def send(sock: socket.socket, data: bytes) -> None:
    """Send all of it."""
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def send_many(sock: socket.socket, size: int, buffer: bytearray) -> None:
    """Send so many bytes, of no meaning."""
    view = memoryview(buffer)
    while size:
        piece = view[: min(size, len(view))]
        await asyncio.get_running_loop().sock_sendall(sock, piece)
        size -= len(piece)


async def receive_timed(sock: socket.socket, size: int, buffer: bytearray) -> tuple[float, float]:
    """Receive so many bytes: (bytes, seconds) of the second half, when TCP has found its speed. Raises EOFError."""
    loop = asyncio.get_running_loop()
    view = memoryview(buffer)
    got = half = 0
    half_s = 0.0
    while got < size:
        received = await loop.sock_recv_into(sock, view[: min(size - got, len(view))])
        if not received:
            raise EOFError
        got += received
        if not half and 2 * got >= size:
            half, half_s = got, time.monotonic()
    return float(got - half), time.monotonic() - half_s
