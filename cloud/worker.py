"""A cloud worker: receives payloads on its own listening socket, queues them, serves them one at a time."""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cloud.frames import (
    UNREADABLE,
    CloudStages,
    Disconnected,
    FrameError,
    FrameReader,
    Header,
    Kind,
    small_frame,
)
from cloud.runtime import CloudRuntime, UnknownModel
from cloud.sockets import close_socket

# Replies are a few dozen bytes: a peer that doesn't take them for so long would hold up everybody in the queue.
REPLY_TIMEOUT_S = 2.0
ACCEPT_AGAIN_S = 0.05

Reply = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Job:
    """A request that has arrived whole and waits for the worker."""

    header: Header
    received_s: float
    reply: Reply


class Worker:
    """One decoder behind one queue. Requests that can't be accepted are refused and counted, and nothing crashes.

    `counts` has `served`, `forgotten` (still queued at the end of a turn), `refused_<reason>` for frames that were not
    acceptable, `refused_queue_full`, `refused_connections`, `failed_accepts`, and `unanswered` for answers whose agent
    was gone.
    """

    def __init__(self, runtime: CloudRuntime, queue_limit: int, max_body_bytes: int, max_connections: int) -> None:
        self._runtime = runtime
        self._queue: asyncio.Queue[Job] = asyncio.Queue(queue_limit)
        self._max_body_bytes = max_body_bytes
        self._max_connections = max_connections
        self._connections: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()

    async def run(self, listener: socket.socket) -> None:
        """Accept on `listener` (non-blocking) and serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._accept(listener))
                group.create_task(self.serve_queue())
        finally:
            for connection in list(self._connections):
                connection.cancel()

    def submit(self, job: Job) -> bool:
        """Queue a request; False, and counted, if the queue is full."""
        try:
            self._queue.put_nowait(job)
        except asyncio.QueueFull:
            self.counts["refused_queue_full"] += 1
            return False
        return True

    async def settle(self) -> None:
        """Forget what is queued and wait for the request being served, so that the next turn finds the worker idle."""
        while not self._queue.empty():
            self._queue.get_nowait()
            self._queue.task_done()
            self.counts["forgotten"] += 1
        await self._queue.join()

    async def serve_queue(self) -> None:
        """Serve queued requests one after the other, for ever."""
        while True:
            job = await self._queue.get()
            try:
                await self._serve(job)
            finally:
                self._queue.task_done()

    async def _serve(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        await self._runtime.prefill(job.header)
        prefilled = loop.time()
        await self._runtime.decode(job.header)
        stages = CloudStages(
            received_s=job.received_s,
            queue_ms=(started - job.received_s) * 1e3,
            prefill_ms=(prefilled - started) * 1e3,
            decode_ms=(loop.time() - prefilled) * 1e3,
        )
        try:
            await job.reply(_frame(Kind.ANSWER, job.header, stages.pack()))
            self.counts["served"] += 1
        except OSError:
            self.counts["unanswered"] += 1

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError:  # out of descriptors, or the peer has gone again
                self.counts["failed_accepts"] += 1
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            if len(self._connections) >= self._max_connections:
                self.counts["refused_connections"] += 1
                sock.close()
                continue
            task = asyncio.create_task(self._serve_connection(sock))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve_connection(self, sock: socket.socket) -> None:
        """Read frames until the peer closes or sends what is not a frame."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writing = asyncio.Lock()

        async def reply(frame: bytes) -> None:
            try:
                async with writing, asyncio.timeout(REPLY_TIMEOUT_S):
                    await loop.sock_sendall(sock, frame)
            except TimeoutError:
                sock.shutdown(socket.SHUT_RDWR)  # half a frame is out: the reading side will see the end and close
                raise

        reader = FrameReader(lambda view: loop.sock_recv_into(sock, view), self._max_body_bytes)
        header: Header | None = None
        receiving = False
        try:
            while True:
                header, receiving = None, False
                header = await reader.header()
                receiving = True
                if header.kind is not Kind.REQUEST:
                    raise FrameError("kind", f"a worker takes requests, not {header.kind.name}")
                self._runtime.check(header)
                await reader.body(header)
                receiving, received_s = False, loop.time()
                if self.submit(Job(header, received_s, reply)):
                    await reply(_frame(Kind.RECEIPT, header, CloudStages(received_s).pack()))
                else:
                    await reply(_frame(Kind.REFUSAL, header, b"queue_full"))
        except Disconnected:
            pass
        except (FrameError, UnknownModel) as error:
            # After a broken frame nothing on this connection can be trusted to be a frame boundary: close it.
            reason = error.reason if isinstance(error, FrameError) else "unknown_model"
            self.counts[f"refused_{reason}"] += 1
            try:
                await reply(_frame(Kind.REFUSAL, header or Header(Kind.REFUSAL, UNREADABLE, 0), reason.encode()))
            except OSError:
                pass
        except OSError:
            if receiving:
                self.counts["refused_truncated"] += 1
        finally:
            close_socket(sock)


def _frame(kind: Kind, request: Header, body: bytes) -> bytes:
    return small_frame(Header(kind, request.request_id, len(body), request.agent_id), body)
