"""The kernel link: a namespace for each agent, a base station and the cloud, joined by veths and shaped in two hops.

    agent i                         base station                        cloud
    [uplink] -- hop 1: the grant --> [agent i]  [cloud] -- hop 2: the channel --> [uplink]

Hop 1 is an HTB class on the agent's own veth, where its TCP builds the segments: a full queue there holds the sender
back instead of dropping. Hop 2 is one HTB class at the channel's rate with a leaf for each agent. The leaves' assured
rates are next to nothing, so practically everything they send is borrowed from the parent, a frame each in turn: the
parent's rate caps their sum (an HTB parent does not cap assured rates that add up to more) and agents that want more
than the channel has get equal shares. Only the parent changes when the channel changes.

The base station routes rather than bridges: a kernel bridge has at most 1023 ports and floods. All neighbours are
static, so that no transfer waits for ARP. What flows down to the agents is not shaped.

Only for single-threaded processes with CAP_SYS_ADMIN and CAP_NET_ADMIN (see `namespaces`). Nothing needs undoing: the
kernel removes it all with its last descriptor.
"""

import contextlib
import os
import socket
from collections.abc import Mapping

from netem import rtnl, shaping
from netem.link import SEND_BUFFER_BYTES, AgentCounters, LinkError
from netem.namespaces import NetworkNamespace
from netem.netlink import Message, Netlink
from netem.wire import MAX_RATE_MBPS

STATION_MAC, FAR_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
STATION_IP = socket.inet_aton("10.63.0.1")  # every far end's gateway; only its neighbour entry exists
CLOUD_IP = socket.inet_aton("10.63.0.2")
FIRST_AGENT_IP = int.from_bytes(socket.inet_aton("10.64.0.1"), "big")
FIRST_WORKER_PORT = 7000

# Link numbers. Above those of the tunnel devices that some kernels put into every new namespace.
UPLINK = 50
CLOUD_LINK = 50
FIRST_AGENT_LINK = 100

# Minor numbers of HTB classes. On hop 1 there is one; on hop 2 a parent, a leaf for strays (none are expected) and
# one leaf for each agent.
TOTAL, STRAYS, FIRST_AGENT_CLASS = 1, 2, 0x10
ASSURED_MBPS = 0.0001
QUEUE_PACKETS = 1000
# Far more than a link's bandwidth-delay product: the window never limits, the send buffer and the shaping do.
INITIAL_WINDOW_SEGMENTS = 1000
# The path loses nothing, so a retransmission timeout is a false alarm: 64 agents on 5 Mbit/s wait 155 ms for a frame,
# and the usual least timeout of 200 ms would fill 4 % of the channel with what is only late.
LEAST_TIMEOUT_MS = 2000

SYSCTLS = {
    "ipv6/conf/default/disable_ipv6": "1",
    "ipv4/tcp_no_metrics_save": "1",
    "ipv4/tcp_slow_start_after_idle": "0",
}


def agent_ip(agent: int) -> bytes:
    """The agent's address, 4 bytes."""
    return (FIRST_AGENT_IP + agent).to_bytes(4, "big")


class _Place:
    """A namespace and the netlink socket that speaks for it."""

    def __init__(self) -> None:
        self.namespace = NetworkNamespace(SYSCTLS)
        with self.namespace.entered():
            self.netlink = Netlink()

    def close(self) -> None:
        self.netlink.close()
        self.namespace.close()


class KernelLink:
    """Builds everything at once. Raises OSError (NetlinkError included) if this machine can't."""

    def __init__(self, agents: int, workers: int, channel_mbps: float, grant_mbps: float) -> None:
        self._workers = workers
        self._grants_mbps = [grant_mbps] * agents
        self._channel_mbps = channel_mbps
        with contextlib.ExitStack() as undo:
            self._station = _Place()
            undo.callback(self._station.close)
            self._cloud = self._make_cloud()
            undo.callback(self._cloud.close)
            self._agents: list[_Place] = []
            for agent in range(agents):
                self._agents.append(self._make_agent(agent))
                undo.callback(self._agents[-1].close)
            undo.pop_all()

    def _make_cloud(self) -> _Place:
        cloud = _Place()
        channel = shaping.htb_class(CLOUD_LINK, TOTAL, self._channel_mbps, self._channel_mbps, new=True)
        self._station.netlink.request(
            [
                rtnl.veth_pair(CLOUD_LINK, "cloud", STATION_MAC, UPLINK, "uplink", FAR_MAC, cloud.namespace.fd),
                shaping.htb(CLOUD_LINK, default_minor=STRAYS),
                channel,
                *_hop2_leaf(STRAYS),
                *shaping.source_table(CLOUD_LINK),
                *_station_side(CLOUD_LINK, CLOUD_IP),
            ]
        )
        cloud.netlink.request(_far_side(CLOUD_IP))
        return cloud

    def _make_agent(self, agent: int) -> _Place:
        place = _Place()
        ip, link, minor = agent_ip(agent), FIRST_AGENT_LINK + agent, FIRST_AGENT_CLASS + agent
        self._station.netlink.request(
            [
                rtnl.veth_pair(link, f"agent{agent}", STATION_MAC, UPLINK, "uplink", FAR_MAC, place.namespace.fd),
                *_station_side(link, ip),
                *_hop2_leaf(minor),
                shaping.source_filter(CLOUD_LINK, ip, minor),
            ]
        )
        grant_mbps = self._grants_mbps[agent]
        place.netlink.request(
            [
                shaping.htb(UPLINK, default_minor=TOTAL),
                shaping.htb_class(UPLINK, TOTAL, grant_mbps, grant_mbps, new=True),
                shaping.pfifo(UPLINK, shaping.HANDLE | TOTAL, QUEUE_PACKETS),
                *_far_side(ip),
            ]
        )
        return place

    def listen(self, worker: int) -> socket.socket:
        """See `link.Link`."""
        self._check_worker(worker)
        with self._cloud.namespace.entered():
            listener = _tcp_socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((socket.inet_ntoa(CLOUD_IP), FIRST_WORKER_PORT + worker))
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            listener.close()
            raise LinkError(f"worker {worker} can't listen: {os.strerror(error.errno or 0)}") from error
        return listener

    def connect(self, agent: int, worker: int) -> socket.socket:
        """See `link.Link`."""
        self._check_worker(worker)
        self._check_agent(agent)
        with self._agents[agent].namespace.entered():
            sender = _tcp_socket()
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        try:
            sender.connect((socket.inet_ntoa(CLOUD_IP), FIRST_WORKER_PORT + worker))
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
                self._agents[agent].netlink.request([shaping.htb_class(UPLINK, TOTAL, mbps, mbps)])
                self._grants_mbps[agent] = mbps

    def set_channel(self, mbps: float) -> None:
        """See `link.Link`."""
        if mbps != self._channel_mbps:
            self._station.netlink.request([shaping.htb_class(CLOUD_LINK, TOTAL, mbps, mbps)])
            self._channel_mbps = mbps

    def counters(self) -> tuple[list[AgentCounters], int]:
        """See `link.Link`."""
        hop2 = dict(map(shaping.parse_class, self._station.netlink.dump(shaping.read_classes(CLOUD_LINK))))
        direct = shaping.parse_direct_packets(self._station.netlink.get(shaping.read_qdisc(CLOUD_LINK)))
        agents = []
        for agent, place in enumerate(self._agents):
            own = dict(map(shaping.parse_class, place.netlink.dump(shaping.read_classes(UPLINK))))[TOTAL]
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
            direct += shaping.parse_direct_packets(place.netlink.get(shaping.read_qdisc(UPLINK)))
        return agents, direct

    def tick(self) -> None:
        """Nothing is ever due: the kernel does the work."""

    def close(self) -> None:
        """Give the namespaces up; they vanish unless sockets handed out still hold them."""
        for place in [*self._agents, self._cloud, self._station]:
            place.close()

    def _check_agent(self, agent: int) -> None:
        if not 0 <= agent < len(self._agents):
            raise LinkError(f"no agent {agent}: there are {len(self._agents)}")

    def _check_worker(self, worker: int) -> None:
        if not 0 <= worker < self._workers:
            raise LinkError(f"no worker {worker}: there are {self._workers}")


def _station_side(link: int, far_ip: bytes) -> list[Message]:
    return [
        rtnl.forwarding_link_up(link),
        rtnl.neighbour(link, far_ip, FAR_MAC),
        rtnl.host_route(link, far_ip),
    ]


def _far_side(ip: bytes) -> list[Message]:
    return [
        rtnl.link_up(rtnl.LOOPBACK_INDEX),
        rtnl.link_up(UPLINK),
        rtnl.address(UPLINK, ip),
        rtnl.neighbour(UPLINK, STATION_IP, STATION_MAC),
        rtnl.default_route(UPLINK, STATION_IP, INITIAL_WINDOW_SEGMENTS, LEAST_TIMEOUT_MS),
    ]


def _hop2_leaf(minor: int) -> list[Message]:
    parent = shaping.HANDLE | TOTAL
    return [
        shaping.htb_class(CLOUD_LINK, minor, ASSURED_MBPS, MAX_RATE_MBPS, parent, new=True),
        shaping.pfifo(CLOUD_LINK, shaping.HANDLE | minor, QUEUE_PACKETS),
    ]


def _tcp_socket() -> socket.socket:
    """A non-blocking socket with plain Reno, present in every kernel: on a lossless path it neither paces nor probes,
    so that the shaping alone sets the rate (BBR or CUBIC's slow-start exit would add their own)."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    return made
