"""The kernel link: sockets inside the topology's namespaces, and its rates and counters (see `topology`)."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

from netem.impairments import NO_IMPAIRMENTS, Impairments
from netem.kernel.topology import CLOUD_IP, FIRST_AGENT_CLASS, TOTAL, Topology
from netem.link import SEND_BUFFER_BYTES, AgentCounters, CongestionControl, LinkError

FIRST_WORKER_PORT = 7000


class KernelLink:
    """See `link.Link`. Builds the whole topology at once; rates are link-layer Mbit/s.

    Raises OSError if this machine can't, LinkError if only `congestion` or `impairments` aren't available.
    """

    def __init__(
        self,
        agents: int,
        workers: int,
        channel_mbps: float,
        grant_mbps: float,
        congestion: CongestionControl = "reno",
        impairments: Impairments = NO_IMPAIRMENTS,
    ) -> None:
        _require_congestion_control(congestion)
        self._congestion = congestion
        self._impairments = impairments
        self._workers = workers
        self._grants_mbps = [grant_mbps] * agents
        self._channel_mbps = channel_mbps
        self.topology = Topology(agents, channel_mbps, grant_mbps, impairments)

    def listen(self, worker: int) -> socket.socket:
        """See `link.Link`."""
        self._check_worker(worker)
        with self.topology.cloud.entered():
            listener = _tcp_socket(self._congestion)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((CLOUD_IP, FIRST_WORKER_PORT + worker))
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            listener.close()
            raise LinkError(f"worker {worker} can't listen: {os.strerror(error.errno or 0)}") from error
        return listener

    def connect(self, agent: int, worker: int) -> socket.socket:
        """See `link.Link`."""
        self._check_worker(worker)
        self._check_agent(agent)
        with self.topology.agents[agent].namespace.entered():
            sender = _tcp_socket(self._congestion)
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._impairments.touch(agent):
            # A send buffer of a fixed size would limit the window. Let the kernel grow it, and bound only the unsent
            # part.
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, SEND_BUFFER_BYTES)
        else:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        try:
            sender.connect((CLOUD_IP, FIRST_WORKER_PORT + worker))
        except BlockingIOError:
            pass
        except OSError as error:
            sender.close()
            raise LinkError(f"agent {agent} can't reach worker {worker}: {error.strerror}") from error
        return sender

    def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        """See `link.Link`."""
        for agent in grants_mbps:
            self._check_agent(agent)
        for agent, mbps in grants_mbps.items():
            if mbps != self._grants_mbps[agent]:
                self.topology.agents[agent].rate.set_rate(mbps)
                self._grants_mbps[agent] = mbps

    def set_connected(self, agent: int, connected: bool) -> None:
        """See `link.Link`."""
        self._check_agent(agent)
        self.topology.set_connected(agent, connected)

    def set_channel(self, mbps: float) -> None:
        """See `link.Link`."""
        if mbps != self._channel_mbps:
            self.topology.station.rate.set_rate(mbps)
            self._channel_mbps = mbps

    def counters(self) -> tuple[list[AgentCounters], int]:
        """See `link.Link`."""
        hop2, direct = self.topology.station.read()
        agents = []
        for agent, place in enumerate(self.topology.agents):
            hop1, past_hop1 = place.read()
            direct += past_hop1
            own = hop1[TOTAL]
            shared = hop2[FIRST_AGENT_CLASS + agent]
            agents.append(
                AgentCounters(
                    hop1_bytes=own.sent_bytes,
                    hop1_packets=own.sent_packets,
                    hop2_bytes=shared.sent_bytes,
                    hop2_packets=shared.sent_packets,
                    hop2_dropped_packets=shared.dropped_packets,
                    hop2_backlog_bytes=shared.backlog_bytes,
                )
            )
        return agents, direct

    def used_bytes(self) -> int:
        """See `link.Link`."""
        return self.topology.station.sent_bytes()

    def tick(self) -> None:
        """See `link.Link`; always None, since the kernel does the work."""

    def close(self) -> None:
        """Release the namespaces; each vanishes once no socket that was handed out holds it."""
        self.topology.close()

    def _check_agent(self, agent: int) -> None:
        if not 0 <= agent < len(self._grants_mbps):
            raise LinkError(f"no agent {agent}: there are {len(self._grants_mbps)}")

    def _check_worker(self, worker: int) -> None:
        if not 0 <= worker < self._workers:
            raise LinkError(f"no worker {worker}: there are {self._workers}")


def _tcp_socket(congestion: CongestionControl) -> socket.socket:
    """A non-blocking socket.

    The default is plain Reno, present in every kernel: on a lossless path it neither paces nor probes, so the shaping
    alone sets the rate (BBR and CUBIC's slow-start exit add dynamics of their own).
    """
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    return made


def _require_congestion_control(congestion: CongestionControl) -> None:
    """Raise LinkError, with a list of the kernel's congestion controls, if `congestion` isn't among them."""
    try:
        _tcp_socket(congestion).close()
    except OSError:
        offered = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
        raise LinkError(
            f"this kernel doesn't offer the congestion control {congestion}, only {', '.join(offered)}: "
            f"modprobe tcp_{congestion}, or choose one of these"
        ) from None
