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

Delay, jitter, loss and reordering are netems, and never in front of a token bucket or on a sender's own interface:

    up, an agent's own      behind hop 1: where the agent's frames arrive at the base station
    up, shared              behind hop 2: where the channel's frames arrive at the cloud
    down, shared            where the cloud's frames arrive at the base station
    down, an agent's own    where the base station sends to the agent

What arrives on a link can't be queued there, so it takes a turn through an ifb device of the same namespace with the
netem at its root. Behind a bucket, a netem gets frames at the rate that the bucket lets go, and changes nothing about
that rate; in front, it would hide the bucket's full queue from the sender, and hand the bucket bursts that it had held
back. On a sender's own interface TCP is told of what a full netem drops, which on a real path it isn't.

Only for single-threaded processes with CAP_SYS_ADMIN and CAP_NET_ADMIN (see `namespaces`). Nothing needs undoing: the
kernel removes it all with its last descriptor.
"""

import contextlib
import errno
import os
import platform
import socket
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from netem.helper.protocol import CongestionControl
from netem.impairments import NO_IMPAIRMENTS, Impairment, Impairments, netem_options
from netem.kernel import htb
from netem.kernel.namespaces import NetworkNamespace
from netem.link import SEND_BUFFER_BYTES, AgentCounters, LinkError
from netem.wire import MAX_RATE_MBPS

STATION_MAC, FAR_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
STATION_IP = "10.63.0.1"  # every far end's gateway; only its neighbour entry exists
CLOUD_IP = "10.63.0.2"
FIRST_AGENT_IP = IPv4Address("10.64.0.1")
FIRST_WORKER_PORT = 7000

# Link numbers. Above those of the tunnel devices that some kernels put into every new namespace.
UPLINK = 50
CLOUD_LINK = 50
SHARED_DELAYER = 9_999  # ifbs: the shared ones (one here, one there), then one for each impaired agent
FIRST_AGENT_DELAYER = 10_000

# Minor numbers of HTB classes. On hop 1 there is one; on hop 2 a parent, a leaf for strays (none are expected) and
# one leaf for each agent.
TOTAL, STRAYS, FIRST_AGENT_CLASS = 1, 2, 0x10
ASSURED_MBPS = 0.0001
# Far more than a link's bandwidth-delay product: the window never limits, the send buffer and the shaping do.
INITIAL_WINDOW_SEGMENTS = 1000
# The path loses nothing, so a retransmission timeout is a false alarm: each of 64 agents on 5 Mbit/s waits 155 ms for
# a frame, and with the usual least timeout of 200 ms they filled 4 % of the channel with what was only late.
LEAST_TIMEOUT_MS = 2000

# Where /proc/sys is read-only these stay as they are, and slow links see some frames sent twice (see below).
SYSCTLS = {
    "ipv6/conf/default/disable_ipv6": "1",
    "ipv4/tcp_no_metrics_save": "1",
    "ipv4/tcp_slow_start_after_idle": "0",
}
# For ends whose path is short and loses nothing.
UNIMPAIRED_SYSCTLS = {
    # Without this a sender that was fast a moment ago fills its queue with all that the send buffer holds.
    "ipv4/tcp_limit_output_bytes": "16384",
    # No tail loss probes: on a path without loss they only shorten the timeout.
    "ipv4/tcp_early_retrans": "0",
}
# For the others: a window must hold what is on its way, up to 64 MB. That is 2 s at 250 Mbit/s; the kernel's own are
# some 4 MB to send and 6 to receive. It grows them as needed.
IMPAIRED_SYSCTLS = {"ipv4/tcp_wmem": "4096 16384 67108864", "ipv4/tcp_rmem": "4096 131072 67108864"}
LOOPBACK = 1


def agent_ip(agent: int) -> str:
    """The agent's address."""
    return str(FIRST_AGENT_IP + agent)


class _Place:
    """A namespace with one shaped link, and what changes that link's rate."""

    def __init__(self, shaped_link: int, sysctls: Mapping[str, str]) -> None:
        self.namespace = NetworkNamespace(sysctls)
        self._shaped_link = shaped_link
        with self.namespace.entered():
            self.rate = htb.RateChanger(shaped_link, TOTAL)

    @contextlib.contextmanager
    def kernel(self) -> Iterator[IPRoute]:
        """Speak with the kernel about this namespace, from anywhere."""
        with self.namespace.entered():
            ip = IPRoute()
        with ip:
            yield ip

    def read(self) -> tuple[dict[int, htb.ClassCounters], int]:
        """The counters of the shaped link's classes, and the packets that got past them."""
        with self.kernel() as ip:
            return (
                htb.read_classes(ip, self._shaped_link),
                htb.read_direct_packets(ip, self._shaped_link),
            )

    def close(self) -> None:
        self.rate.close()
        self.namespace.close()


class KernelLink:
    """Builds everything at once.

    Raises OSError if this machine can't, LinkError if only `congestion` or `impairments` can't be had.
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
        with _netlink_errors_as_os_errors(), contextlib.ExitStack() as undo:
            self._station = _Place(CLOUD_LINK, SYSCTLS | {"ipv4/ip_forward": "1"})
            undo.callback(self._station.close)
            _require_forwarding(self._station.namespace)
            with self._station.kernel() as station:
                self._cloud = NetworkNamespace(_sysctls(impairments.active))
                undo.callback(self._cloud.close)
                self._build_cloud(station)
                self._agents: list[_Place] = []
                for agent in range(agents):
                    place = _Place(UPLINK, _sysctls(impairments.touch(agent)))
                    undo.callback(place.close)
                    self._agents.append(place)
                    self._build_agent(station, agent, place)
            undo.pop_all()

    def _build_cloud(self, station: IPRoute) -> None:
        _make_veth(station, CLOUD_LINK, "cloud", STATION_MAC, self._cloud.fd, "uplink", FAR_MAC)
        htb.add_htb(station, CLOUD_LINK, default_minor=STRAYS)
        htb.add_class(station, CLOUD_LINK, TOTAL, self._channel_mbps, self._channel_mbps)
        _add_hop2_leaf(station, STRAYS)
        _bring_up_station_side(station, CLOUD_LINK, CLOUD_IP)
        shared = self._impairments.shared
        self._impair_arrivals(station, self._station.namespace, CLOUD_LINK, SHARED_DELAYER, shared.down)
        with self._cloud.entered():
            cloud = IPRoute()
        with cloud:
            uplink = cloud.link_lookup(ifname="uplink")[0]
            _bring_up_far_side(cloud, uplink, CLOUD_IP, impaired=shared.active)
            self._impair_arrivals(cloud, self._cloud, uplink, SHARED_DELAYER, shared.up)
            if not shared.active:
                for agent in filter(self._impairments.touch, range(len(self._grants_mbps))):
                    _route_to_station(cloud, uplink, agent_ip(agent), impaired=True)

    def _build_agent(self, station: IPRoute, agent: int, place: _Place) -> None:
        ip, name, minor = agent_ip(agent), f"agent{agent}", FIRST_AGENT_CLASS + agent
        grant_mbps = self._grants_mbps[agent]
        with place.kernel() as kernel:
            _make_veth(kernel, UPLINK, "uplink", FAR_MAC, self._station.namespace.fd, name, STATION_MAC)
            htb.add_htb(kernel, UPLINK, default_minor=TOTAL)
            htb.add_class(kernel, UPLINK, TOTAL, grant_mbps, grant_mbps)
            htb.add_queue(kernel, UPLINK, TOTAL)
            _bring_up_far_side(kernel, UPLINK, ip, self._impairments.touch(agent))
        link = station.link_lookup(ifname=name)[0]
        _bring_up_station_side(station, link, ip)
        own = self._impairments.of(agent)
        self._impair_arrivals(station, self._station.namespace, link, FIRST_AGENT_DELAYER + agent, own.up)
        self._impair_departures(self._station.namespace, link, own.down)
        _add_hop2_leaf(station, minor)
        htb.add_source_filter(station, CLOUD_LINK, ip, minor)

    def _impair_arrivals(
        self, kernel: IPRoute, namespace: NetworkNamespace, link: int, delayer: int, impairment: Impairment
    ) -> None:
        if not impairment.active:
            return
        with _as_lack_of("ifb"):
            kernel.link("add", index=delayer, ifname=f"delay{delayer}", kind="ifb", gso_max_segs=1)
        self._impair_departures(namespace, delayer, impairment)
        kernel.link("set", index=delayer, state="up")
        with _as_lack_of("act_mirred"):
            htb.redirect_arrivals(kernel, link, delayer)

    def _impair_departures(self, namespace: NetworkNamespace, link: int, impairment: Impairment) -> None:
        if not impairment.active:
            return
        options = netem_options(impairment, max(self._channel_mbps, *self._grants_mbps))
        with namespace.entered(), _as_lack_of("netem"):
            htb.add_netem(link, options)

    def listen(self, worker: int) -> socket.socket:
        """See `link.Link`."""
        self._check_worker(worker)
        with self._cloud.entered():
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
        with self._agents[agent].namespace.entered():
            sender = _tcp_socket(self._congestion)
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._impairments.touch(agent):
            # A buffer of a fixed size would be a window of that size. Let the kernel grow it with the window, and bound
            # only what isn't sent yet.
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
                self._agents[agent].rate.set_rate(mbps)
                self._grants_mbps[agent] = mbps

    def set_channel(self, mbps: float) -> None:
        """See `link.Link`."""
        if mbps != self._channel_mbps:
            self._station.rate.set_rate(mbps)
            self._channel_mbps = mbps

    def counters(self) -> tuple[list[AgentCounters], int]:
        """See `link.Link`."""
        hop2, direct = self._station.read()
        agents = []
        for agent, place in enumerate(self._agents):
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
        return self._station.read()[0][TOTAL].sent_bytes

    def tick(self) -> None:
        """Nothing is ever due: the kernel does the work."""

    def close(self) -> None:
        """Give the namespaces up; they vanish unless sockets handed out still hold them."""
        for place in [*self._agents, self._station]:
            place.close()
        self._cloud.close()

    def _check_agent(self, agent: int) -> None:
        if not 0 <= agent < len(self._agents):
            raise LinkError(f"no agent {agent}: there are {len(self._agents)}")

    def _check_worker(self, worker: int) -> None:
        if not 0 <= worker < self._workers:
            raise LinkError(f"no worker {worker}: there are {self._workers}")


def _require_forwarding(station: NetworkNamespace) -> None:
    """Unlike the other settings, this one the link can't do without. Raises OSError."""
    with station.entered():
        if Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() != "1":
            raise OSError(errno.EROFS, "the base station can't forward: /proc/sys is read-only")


@contextlib.contextmanager
def _netlink_errors_as_os_errors() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error


@contextlib.contextmanager
def _as_lack_of(feature: str) -> Iterator[None]:
    """Raises LinkError for an error that says that the kernel doesn't know `feature`."""
    try:
        with _netlink_errors_as_os_errors():
            yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
            raise
        raise LinkError(
            f"this kernel has no {feature}, without which it can't delay, lose or reorder anything: modprobe -a "
            f"sch_netem ifb act_mirred (on Ubuntu from linux-modules-extra-{platform.release()})"
        ) from None


def _sysctls(impaired: bool) -> dict[str, str]:
    """Of a namespace where TCP ends."""
    return SYSCTLS | (IMPAIRED_SYSCTLS if impaired else UNIMPAIRED_SYSCTLS)


def _make_veth(
    kernel: IPRoute, index: int, name: str, address: str, far_namespace: int, far_name: str, far_address: str
) -> None:
    """A veth whose far end is in the namespace behind a descriptor; both ends down.

    TCP is told to build no segment larger than a frame on either end: with segmentation offload a token bucket passes
    up to 64 KB at once, which distorts payloads of that size by tens of percent.
    """
    far = {"ifname": far_name, "address": far_address, "gso_max_segs": 1, "net_ns_fd": far_namespace}
    kernel.link("add", index=index, ifname=name, kind="veth", address=address, gso_max_segs=1, peer=far)


def _bring_up_station_side(station: IPRoute, link: int, far_ip: str) -> None:
    station.link("set", index=link, state="up")
    _fix_neighbour(station, link, far_ip, FAR_MAC)
    station.route("add", dst=f"{far_ip}/32", oif=link, scope="link")


def _bring_up_far_side(kernel: IPRoute, link: int, ip: str, impaired: bool) -> None:
    kernel.link("set", index=LOOPBACK, state="up")
    kernel.link("set", index=link, state="up")
    kernel.addr("add", index=link, address=ip, prefixlen=32)
    _fix_neighbour(kernel, link, STATION_IP, STATION_MAC)
    _route_to_station(kernel, link, "default", impaired)


def _route_to_station(kernel: IPRoute, link: int, to: str, impaired: bool) -> None:
    """On an impaired path TCP starts and times out as the kernel's own does."""
    metrics = {} if impaired else {"initcwnd": INITIAL_WINDOW_SEGMENTS, "rto_min": LEAST_TIMEOUT_MS}
    kernel.route("add", dst=to, gateway=STATION_IP, oif=link, flags=["onlink"], metrics=metrics)


def _fix_neighbour(kernel: IPRoute, link: int, ip: str, mac: str) -> None:
    """Say who has `ip` on a link, so that no transfer waits for ARP."""
    kernel.neigh("add", dst=ip, lladdr=mac, ifindex=link, state="permanent")


def _add_hop2_leaf(station: IPRoute, minor: int) -> None:
    htb.add_class(station, CLOUD_LINK, minor, ASSURED_MBPS, MAX_RATE_MBPS, htb.HANDLE | TOTAL)
    htb.add_queue(station, CLOUD_LINK, minor)


def _tcp_socket(congestion: CongestionControl) -> socket.socket:
    """A non-blocking socket. Plain Reno, present in every kernel, is the link's usual: on a lossless path it neither
    paces nor probes, so that the shaping alone sets the rate (BBR or CUBIC's slow-start exit add their own)."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    return made


def _require_congestion_control(congestion: CongestionControl) -> None:
    """Raises LinkError, with what the kernel offers."""
    try:
        _tcp_socket(congestion).close()
    except OSError:
        offered = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
        raise LinkError(
            f"this kernel doesn't offer the congestion control {congestion}, only {', '.join(offered)}: "
            f"modprobe tcp_{congestion}, or choose one of these"
        ) from None
