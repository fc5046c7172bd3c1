"""The helper's event loop, in one thread: receives clients' requests, sends answers and sockets.

Nothing here blocks, and no client can end the loop: malformed requests are refused and counted, and a client that
doesn't read its answers is dropped.
"""

import logging
import selectors
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from netem.helper import protocol
from netem.link import Link, LinkError

MAX_CLIENTS = 1100  # one for each of 1024 agents, and a margin
PEER_CREDENTIALS = struct.Struct("=iII")  # pid, uid, gid

BuildLink = Callable[[protocol.Build, selectors.BaseSelector], Link]


class Server:
    """Serves the clients of one user at a socket path until `stop` is called.

    `build_link` builds the link on the first `build` request. Raises OSError if the path can't be bound.
    """

    def __init__(self, path: Path, allowed_uid: int, build_link: BuildLink) -> None:
        self._allowed_uids = {0, allowed_uid}
        self._build_link = build_link
        self._link: Link | None = None
        self._clients: set[socket.socket] = set()
        self._refused_connections = 0
        self._refused_requests = 0
        self._running = True
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(str(path))
        self._listener.listen(MAX_CLIENTS)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def stop(self) -> None:
        """End `run` after the current event."""
        self._running = False

    def watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `descriptor` is readable."""
        self._selector.register(descriptor, selectors.EVENT_READ, callback)

    def run(self) -> None:
        """Serve until stopped."""
        while self._running:
            wait_s = self._link.tick() if self._link else None
            for key, _ in self._selector.select(wait_s):
                key.data()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:  # the client is gone, or descriptors have run out: keep serving the others
            logging.warning("accept: %s", error)
            time.sleep(0.01)
            return
        client.setblocking(False)
        if len(self._clients) >= MAX_CLIENTS or not self._allowed(client):
            self._refused_connections += 1
            client.close()
            return
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * protocol.MAX_ANSWER_BYTES)
        self._clients.add(client)
        self._selector.register(client, selectors.EVENT_READ, lambda: self._serve(client))

    def _allowed(self, client: socket.socket) -> bool:
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
        return PEER_CREDENTIALS.unpack(credentials)[1] in self._allowed_uids

    def _drop(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        self._clients.discard(client)
        client.close()

    def _serve(self, client: socket.socket) -> None:
        try:
            # One byte more than allowed distinguishes an oversized message from the largest one. With plain recv, the
            # kernel closes any descriptors that a client attaches.
            message = client.recv(protocol.MAX_REQUEST_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._drop(client)
            return
        answer, attached = self._answer(message)
        try:
            self._send(client, answer, attached)
        finally:
            if attached:
                attached.close()

    def _send(self, client: socket.socket, answer: dict[str, Any], attached: socket.socket | None) -> None:
        descriptors = [attached.fileno()] if attached else []
        try:
            if descriptors:
                socket.send_fds(client, [protocol.encode(answer)], descriptors)
            else:
                client.send(protocol.encode(answer))
        except OSError:  # the client is gone, or doesn't read its answers
            self._drop(client)

    def _answer(self, message: bytes) -> tuple[dict[str, Any], socket.socket | None]:
        if len(message) > protocol.MAX_REQUEST_BYTES:
            return self._refuse(None, f"request longer than {protocol.MAX_REQUEST_BYTES} bytes"), None
        try:
            request = protocol.parse_request(message)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            return self._refuse(None, f"bad request: {place}: {first['msg']}"[:500]), None
        try:
            result = self._do(request)
        except (LinkError, OSError) as error:
            return self._refuse(request.id, str(error)), None
        if isinstance(result, socket.socket):
            return {"id": request.id, "ok": True, "result": None}, result
        return {"id": request.id, "ok": True, "result": result}, None

    def _refuse(self, request_id: int | None, error: str) -> dict[str, Any]:
        self._refused_requests += 1
        return {"id": request_id, "ok": False, "error": error}

    def _do(self, request: protocol.Request) -> Any:
        match request:
            case protocol.Build():
                if self._link:
                    raise LinkError("the link is already built")
                self._link = self._build_link(request, self._selector)
            case protocol.Close():
                pass  # the client closes its end once it has the answer
            case protocol.Listen():
                return self._built().listen(request.worker)
            case protocol.Connect():
                return self._built().connect(request.agent, request.worker)
            case protocol.SetGrants():
                self._built().set_grants(request.mbps)
            case protocol.SetConnected():
                self._built().set_connected(request.agent, request.connected)
            case protocol.SetChannel():
                self._built().set_channel(request.mbps)
            case protocol.Counters():
                agents, direct_packets = self._built().counters()
                return {
                    "agents": [astuple(one) for one in agents],
                    "direct_packets": direct_packets,
                    "refused_connections": self._refused_connections,
                    "refused_requests": self._refused_requests,
                }
            case protocol.Used():
                return self._built().used_bytes()
        return None

    def _built(self) -> Link:
        if not self._link:
            raise LinkError(protocol.NOT_BUILT)
        return self._link
