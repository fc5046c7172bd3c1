"""The paced link: a user-space relay over loopback, for machines where the kernel can't shape links.

Every byte from an agent to a worker passes through this process. About every millisecond each backlogged agent earns
credit at its max-min fair share of the channel, capped by its grant. Full segments leave as the credit allows, with
framing overhead counted as on the kernel link. Traffic back to the agents is relayed at once.

It is less exact than the kernel link, because a busy Python process does the timing.
"""

import contextlib
import selectors
import socket
import time
from collections.abc import Mapping

from netem.fairness import max_min_shares
from netem.link import AgentCounters, LinkError
from netem.wire import FRAME_BYTES, SEGMENT_PAYLOAD_BYTES, wire_bytes

LOOPBACK = "127.0.0.1"
TICK_S = 0.001
# Small, so that a sender is hardly ahead of its link; loopback's 64 KB segments would not fit, hence MAXSEG below.
BUFFER_BYTES = 1 << 16
# A flow reads ahead this long at its own rate, so that a late tick still finds data to send.
READ_AHEAD_S = 0.01
CONNECT_TIMEOUT_S = 1.0


class _Flow:
    """One connection from an agent (`near`) to a worker (`far`), with its buffers in between."""

    def __init__(self, agent: int, near: socket.socket, far: socket.socket) -> None:
        self.agent = agent
        self.near = near
        self.far = far
        self.up = bytearray()
        self.down = bytearray()
        self.credit_bytes = 0.0  # of frames
        self.sent_bytes = 0
        self.sent_packets = 0
        self.near_open = True
        self.far_open = True

    def read_up(self, limit_bytes: int) -> None:
        """Read from the agent, up to a backlog of `limit_bytes`. Raises OSError."""
        while self.near_open and len(self.up) < limit_bytes:
            try:
                data = self.near.recv(limit_bytes - len(self.up))
            except BlockingIOError:
                return
            self.up += data
            self.near_open = bool(data)

    def send_up(self) -> None:
        """Forward the full segments (or the last, shorter one) that the credit pays for. Raises OSError."""
        affordable = int(self.credit_bytes // FRAME_BYTES) * SEGMENT_PAYLOAD_BYTES
        if wire_bytes(len(self.up)) <= self.credit_bytes:
            affordable = len(self.up)
        if affordable == 0:
            return
        with contextlib.suppress(BlockingIOError):
            sent = self.far.send(self.up[:affordable])
            del self.up[:sent]
            self.credit_bytes -= wire_bytes(sent)
            self.sent_bytes += wire_bytes(sent)
            self.sent_packets += -(-sent // SEGMENT_PAYLOAD_BYTES)
        # No credit accumulates for a burst while a worker doesn't read or the sender pauses.
        self.credit_bytes = min(self.credit_bytes, FRAME_BYTES) if self.up else 0.0

    def relay_down(self) -> None:
        """Forward the worker's data; reads no more while the agent's end is full. Raises OSError."""
        while self.far_open or self.down:
            try:
                if not self.down:
                    data = self.far.recv(BUFFER_BYTES)
                    self.down += data
                    if not data:
                        self.far_open = False
                        self.near.shutdown(socket.SHUT_WR)
                        return
                del self.down[: self.near.send(self.down)]
            except BlockingIOError:
                return

    def close(self) -> None:
        self.near.close()
        self.far.close()


class PacedLink:
    """See `link.Link`. Watches its sockets with the helper's `selector`; needs no privilege."""

    def __init__(
        self, agents: int, workers: int, channel_mbps: float, grant_mbps: float, selector: selectors.BaseSelector
    ) -> None:
        self._selector = selector
        self._grants_mbps = [grant_mbps] * agents
        self._channel_mbps = channel_mbps
        self._workers = workers
        self._ports: dict[int, int] = {}
        self._flows: set[_Flow] = set()
        self._cut: set[int] = set()
        self._busy: set[_Flow] = set()
        self._closed_bytes = [0] * agents
        self._closed_packets = [0] * agents
        self._last_s = time.monotonic()

    def listen(self, worker: int) -> socket.socket:
        """See `link.Link`."""
        self._check_worker(worker)
        listener = _tcp_socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # A restarted worker reuses its port; while its old listener is open, this fails, as intended.
            listener.bind((LOOPBACK, self._ports.get(worker, 0)))
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            listener.close()
            raise LinkError(f"worker {worker} can't listen: {error.strerror}") from error
        listener.setblocking(False)
        self._ports[worker] = listener.getsockname()[1]
        return listener

    def connect(self, agent: int, worker: int) -> socket.socket:
        """See `link.Link`."""
        self._check_worker(worker)
        if not 0 <= agent < len(self._grants_mbps):
            raise LinkError(f"no agent {agent}: there are {len(self._grants_mbps)}")
        if worker not in self._ports:
            raise LinkError(f"worker {worker} isn't listening")
        far = _tcp_socket()
        far.settimeout(CONNECT_TIMEOUT_S)
        try:
            far.connect((LOOPBACK, self._ports[worker]))
        except OSError as error:
            far.close()
            raise LinkError(f"agent {agent} can't reach worker {worker}: {error}") from error
        sender, near = _loopback_pair()
        for end in (sender, near, far):
            end.setblocking(False)
        flow = _Flow(agent, near, far)
        self._flows.add(flow)
        self._selector.register(near, selectors.EVENT_READ, lambda: self._wake(flow))
        self._selector.register(far, selectors.EVENT_READ, lambda: self._wake(flow))
        return sender

    def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        """See `link.Link`."""
        for agent in grants_mbps:
            if not 0 <= agent < len(self._grants_mbps):
                raise LinkError(f"no agent {agent}: there are {len(self._grants_mbps)}")
        self.tick()  # credit up to now is earned at the old rates
        for agent, mbps in grants_mbps.items():
            self._grants_mbps[agent] = mbps

    def set_connected(self, agent: int, connected: bool) -> None:
        """See `link.Link`; nothing is lost, everything waits."""
        self.tick()
        (self._cut.discard if connected else self._cut.add)(agent)

    def set_channel(self, mbps: float) -> None:
        """See `link.Link`."""
        self.tick()
        self._channel_mbps = mbps

    def counters(self) -> tuple[list[AgentCounters], int]:
        """See `link.Link`; both hops are one here, so their counts are equal."""
        sent_bytes, sent_packets = list(self._closed_bytes), list(self._closed_packets)
        backlog = [0] * len(sent_bytes)
        for flow in self._flows:
            sent_bytes[flow.agent] += flow.sent_bytes
            sent_packets[flow.agent] += flow.sent_packets
            backlog[flow.agent] += len(flow.up)
        return [
            AgentCounters(size, packets, size, packets, 0, waiting)
            for size, packets, waiting in zip(sent_bytes, sent_packets, backlog, strict=True)
        ], 0

    def used_bytes(self) -> int:
        """See `link.Link`."""
        return sum(self._closed_bytes) + sum(flow.sent_bytes for flow in self._flows)

    def tick(self) -> float | None:
        """See `link.Link`."""
        now_s = time.monotonic()
        elapsed_s, self._last_s = now_s - self._last_s, now_s
        waiting: dict[int, list[_Flow]] = {}
        for flow in self._busy:
            if flow.up and flow.agent not in self._cut:
                waiting.setdefault(flow.agent, []).append(flow)
        shares = max_min_shares(self._channel_mbps, [self._grants_mbps[agent] for agent in waiting])
        for flows, share_mbps in zip(list(waiting.values()), shares, strict=True):
            bytes_per_s = share_mbps * 1e6 / 8 / len(flows)
            for flow in flows:
                flow.credit_bytes += bytes_per_s * elapsed_s
                self._move(flow, bytes_per_s)
        for flow in [flow for flow in self._busy if not flow.up]:
            self._move(flow, 0.0)
        return TICK_S if self._busy else None

    def _wake(self, flow: _Flow) -> None:
        """Data arrived: from now on every tick moves the flow, so its sockets need no polling while it is busy."""
        # Both ends may be ready at once, and the first event may have ended the flow already.
        if flow in self._flows and flow not in self._busy:
            if not self._busy:
                self._last_s = time.monotonic()
            for end in (flow.near, flow.far):
                with contextlib.suppress(KeyError):  # a closed end isn't registered
                    self._selector.unregister(end)
            self._busy.add(flow)
            self._move(flow, 0.0)

    def _move(self, flow: _Flow, bytes_per_s: float) -> None:
        if flow.agent in self._cut:
            return
        try:
            flow.read_up(max(BUFFER_BYTES, int(bytes_per_s * READ_AHEAD_S)))
            flow.send_up()
            flow.relay_down()
            if not flow.up and not flow.near_open:
                flow.far.shutdown(socket.SHUT_WR)
        except OSError:  # either end is gone
            self._remove(flow)
            return
        if flow.up or flow.down:
            return
        if not flow.near_open and not flow.far_open:
            self._remove(flow)
            return
        self._busy.discard(flow)
        flow.credit_bytes = 0.0
        if flow.near_open:
            self._selector.register(flow.near, selectors.EVENT_READ, lambda: self._wake(flow))
        if flow.far_open:
            self._selector.register(flow.far, selectors.EVENT_READ, lambda: self._wake(flow))

    def _remove(self, flow: _Flow) -> None:
        self._busy.discard(flow)
        self._flows.discard(flow)
        self._closed_bytes[flow.agent] += flow.sent_bytes
        self._closed_packets[flow.agent] += flow.sent_packets
        flow.close()

    def _check_worker(self, worker: int) -> None:
        if not 0 <= worker < self._workers:
            raise LinkError(f"no worker {worker}: there are {self._workers}")


def _tcp_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _loopback_pair() -> tuple[socket.socket, socket.socket]:
    """(the agent's end, the relay's end) of a connection with small buffers from the agent to the relay."""
    with _tcp_socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_PAYLOAD_BYTES)
        listener.bind((LOOPBACK, 0))
        listener.listen(1)
        sender = _tcp_socket()
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        sender.connect(listener.getsockname())
        near, address = listener.accept()
    if address != sender.getsockname():
        near.close()
        sender.close()
        raise LinkError("another process on this machine connected first; try again")
    return sender, near
