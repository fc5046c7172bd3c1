"""The namespaces of the kernel link: one for each agent, a base station and the cloud, joined by veths, shaped twice.

    agent i                         base station                        cloud
    [uplink] -- hop 1: the grant --> [agent i]  [cloud] -- hop 2: the channel --> [uplink]

Hop 1 is an HTB class on the agent's own veth, where its TCP builds the segments: a full queue there holds the sender
back instead of dropping packets. Hop 2 is one HTB class at the channel's rate with a leaf for each agent. The leaves'
assured rates are close to zero, so nearly all that they send is borrowed from the parent, one frame each in turn: the
parent's rate caps their sum (an HTB parent does not cap assured rates that add up to more), and agents that want more
than the channel carries get equal shares. A channel change touches only the parent.

The base station routes rather than bridges: a kernel bridge has at most 1023 ports, and it floods. All neighbours are
static, so that no transfer waits for ARP. Traffic down to the agents is not shaped. `impaired_links` says where delay
and loss are placed.

Only for single-threaded processes with CAP_SYS_ADMIN and CAP_NET_ADMIN (see `namespaces`). Nothing needs undoing: the
kernel removes a namespace with its last descriptor.
"""

import contextlib
import errno
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path

from pyroute2 import IPRoute

from netem.impairments import Impairments
from netem.kernel import htb, netlink
from netem.kernel.impaired_links import impair_arrivals, impair_departures
from netem.kernel.namespaces import NetworkNamespace
from netem.wire import MAX_SHAPED_MBPS

STATION_MAC, FAR_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
STATION_IP = "10.63.0.1"  # every far end's gateway; only its neighbour entry exists
CLOUD_IP = "10.63.0.2"
FIRST_AGENT_IP = IPv4Address("10.64.0.1")

# Link numbers, above those of the tunnel devices that some kernels put into every new namespace.
LOOPBACK = 1
IFF_UP = 1  # of <net/if.h>
UPLINK = 50
CLOUD_LINK = 50
SHARED_IFB = 9_999  # the shared impairments' ifb, in the station and in the cloud
FIRST_AGENT_IFB = 10_000

# Minor numbers of HTB classes. Hop 1 has one class. Hop 2 has a parent, a leaf for unclassified packets (none are
# expected) and one leaf for each agent.
TOTAL, UNCLASSIFIED, FIRST_AGENT_CLASS = 1, 2, 0x10
ASSURED_MBPS = 0.0001
# Far more than a link's bandwidth-delay product: the send buffer and the shaping limit a sender, never the window.
INITIAL_WINDOW_SEGMENTS = 1000
# The path loses nothing, so every retransmission timeout is a false alarm: each of 64 agents on 5 Mbit/s waits 155 ms
# for a frame, and with the usual minimum RTO of 200 ms needless retransmissions filled 4 % of the channel.
MIN_RTO_MS = 2000

# Where /proc/sys is read-only these keep their values, and slow links then see some frames sent twice.
SYSCTLS = {
    "ipv6/conf/default/disable_ipv6": "1",
    "ipv4/tcp_no_metrics_save": "1",
    "ipv4/tcp_slow_start_after_idle": "0",
}
# For TCP endpoints whose path is short and loses nothing.
UNIMPAIRED_SYSCTLS = {
    # Otherwise a sender that was fast a moment ago moves its whole send buffer into its queue.
    "ipv4/tcp_limit_output_bytes": "16384",
    # No tail loss probes: on a path without loss they only shorten the timeout.
    "ipv4/tcp_early_retrans": "0",
}
# For impaired paths: windows of up to 64 MB hold the bandwidth-delay product of 250 Mbit/s and 2 s; the kernel's own
# maxima are about 4 MB to send and 6 MB to receive. The kernel grows the windows as needed.
IMPAIRED_SYSCTLS = {"ipv4/tcp_wmem": "4096 16384 67108864", "ipv4/tcp_rmem": "4096 131072 67108864"}


def agent_ip(agent: int) -> str:
    """The agent's address."""
    return str(FIRST_AGENT_IP + agent)


def _station_end(agent: int) -> str:
    """The interface of the base station that leads to the agent."""
    return f"agent{agent}"


class ShapedNamespace:
    """A namespace with one shaped link; `rate` changes that link's rate."""

    def __init__(self, shaped_link: int, sysctls: Mapping[str, str]) -> None:
        self.namespace = NetworkNamespace(sysctls)
        self._shaped_link = shaped_link
        with self.namespace.entered():
            self.rate = htb.RateChanger(shaped_link, TOTAL)
        self._meter = htb.ByteMeter(self.rate.kernel, shaped_link, TOTAL)

    @contextlib.contextmanager
    def kernel(self) -> Iterator[IPRoute]:
        """A netlink connection to this namespace, usable from any other."""
        with _netlink(self.namespace) as ip:
            yield ip

    def read(self) -> tuple[dict[int, htb.ClassCounters], int]:
        """The counters of the shaped link's classes, and the number of packets that bypassed them."""
        with self.kernel() as ip:
            return (
                htb.read_classes(ip, self._shaped_link),
                htb.read_direct_packets(ip, self._shaped_link),
            )

    def sent_bytes(self) -> int:
        """Bytes of Ethernet frames that the shaped link has sent."""
        return self._meter.read()

    def close(self) -> None:
        self.rate.close()
        self.namespace.close()


class Topology:
    """All namespaces of a link with their veths, routes, shapers and impairments; rates are link-layer Mbit/s.

    Raises OSError if this machine can't build it, LinkError if only `impairments` aren't available.
    """

    def __init__(self, agents: int, channel_mbps: float, grant_mbps: float, impairments: Impairments) -> None:
        self._impairments = impairments
        self._channel_mbps = channel_mbps
        self._grant_mbps = grant_mbps
        self.agents: list[ShapedNamespace] = []
        with netlink.errors_as_os_errors(), contextlib.ExitStack() as undo:
            self.station = ShapedNamespace(CLOUD_LINK, SYSCTLS | {"ipv4/ip_forward": "1"})
            undo.callback(self.station.close)
            _require_forwarding(self.station.namespace)
            with self.station.kernel() as station:
                self.cloud = NetworkNamespace(_sysctls(impairments.active))
                undo.callback(self.cloud.close)
                self._build_cloud(station, agents)
                for agent in range(agents):
                    place = ShapedNamespace(UPLINK, _sysctls(impairments.touch(agent)))
                    undo.callback(place.close)
                    self.agents.append(place)
                    self._build_agent(station, agent, place)
            undo.pop_all()

    def close(self) -> None:
        """Release the namespaces; each vanishes once no socket that was handed out holds it."""
        for place in [*self.agents, self.station]:
            place.close()
        self.cloud.close()

    def set_connected(self, agent: int, connected: bool) -> None:
        """Take the base station's end of an agent's link down, or up again.

        What is queued or on its way is lost then, and TCP sends it again after its own timeout.
        """
        with netlink.errors_as_os_errors(), self.station.kernel() as station:
            link = station.link_lookup(ifname=_station_end(agent))[0]
            is_up = station.link("get", index=link)[0]["flags"] & IFF_UP
            if connected and not is_up:
                _bring_up_station_side(station, link, agent_ip(agent))
            elif not connected:
                station.link("set", index=link, state="down")

    @property
    def _fastest_mbps(self) -> float:
        return max(self._channel_mbps, self._grant_mbps)

    def _build_cloud(self, station: IPRoute, agents: int) -> None:
        _make_veth(station, CLOUD_LINK, "cloud", STATION_MAC, self.cloud.fd, "uplink", FAR_MAC)
        htb.add_htb(station, CLOUD_LINK, default_minor=UNCLASSIFIED)
        htb.add_class(station, CLOUD_LINK, TOTAL, self._channel_mbps, self._channel_mbps)
        _add_hop2_leaf(station, UNCLASSIFIED)
        _bring_up_station_side(station, CLOUD_LINK, CLOUD_IP)
        shared = self._impairments.shared
        impair_arrivals(station, self.station.namespace, CLOUD_LINK, SHARED_IFB, shared.down, self._fastest_mbps)
        with _netlink(self.cloud) as cloud:
            uplink = cloud.link_lookup(ifname="uplink")[0]
            _bring_up_far_side(cloud, uplink, CLOUD_IP, impaired=shared.active)
            impair_arrivals(cloud, self.cloud, uplink, SHARED_IFB, shared.up, self._fastest_mbps)
            if not shared.active:
                for agent in filter(self._impairments.touch, range(agents)):
                    _route_to_station(cloud, uplink, agent_ip(agent), impaired=True)

    def _build_agent(self, station: IPRoute, agent: int, place: ShapedNamespace) -> None:
        ip, name, minor = agent_ip(agent), _station_end(agent), FIRST_AGENT_CLASS + agent
        with place.kernel() as kernel:
            _make_veth(kernel, UPLINK, "uplink", FAR_MAC, self.station.namespace.fd, name, STATION_MAC)
            htb.add_htb(kernel, UPLINK, default_minor=TOTAL)
            htb.add_class(kernel, UPLINK, TOTAL, self._grant_mbps, self._grant_mbps)
            htb.add_queue(kernel, UPLINK, TOTAL)
            _bring_up_far_side(kernel, UPLINK, ip, self._impairments.touch(agent))
        link = station.link_lookup(ifname=name)[0]
        _bring_up_station_side(station, link, ip)
        own, namespace = self._impairments.of(agent), self.station.namespace
        impair_arrivals(station, namespace, link, FIRST_AGENT_IFB + agent, own.up, self._fastest_mbps)
        impair_departures(namespace, link, own.down, self._fastest_mbps)
        _add_hop2_leaf(station, minor)
        htb.add_source_filter(station, CLOUD_LINK, ip, minor)


@contextlib.contextmanager
def _netlink(namespace: NetworkNamespace) -> Iterator[IPRoute]:
    with namespace.entered():
        ip = IPRoute()
    with ip:
        yield ip


def _require_forwarding(station: NetworkNamespace) -> None:
    """Raise OSError if forwarding is off: unlike the other sysctls, the link can't work without this one."""
    with station.entered():
        if Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() != "1":
            raise OSError(errno.EROFS, "the base station can't forward: /proc/sys is read-only")


def _sysctls(impaired: bool) -> dict[str, str]:
    """The sysctls of a namespace with TCP endpoints."""
    return SYSCTLS | (IMPAIRED_SYSCTLS if impaired else UNIMPAIRED_SYSCTLS)


def _make_veth(
    kernel: IPRoute, index: int, name: str, address: str, far_namespace: int, far_name: str, far_address: str
) -> None:
    """Add a veth whose far end is in the namespace behind a descriptor; both ends are down.

    TCP must build no segment larger than a frame on either end: with segmentation offload a token bucket passes up to
    64 KB at once, which distorts payloads of that size by tens of percent.
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
    """Add a route; an impaired path keeps the kernel's own initial window and minimum RTO."""
    metrics = {} if impaired else {"initcwnd": INITIAL_WINDOW_SEGMENTS, "rto_min": MIN_RTO_MS}
    kernel.route("add", dst=to, gateway=STATION_IP, oif=link, flags=["onlink"], metrics=metrics)


def _fix_neighbour(kernel: IPRoute, link: int, ip: str, mac: str) -> None:
    """Add a permanent neighbour entry for `ip`, so that no transfer waits for ARP."""
    kernel.neigh("add", dst=ip, lladdr=mac, ifindex=link, state="permanent")


def _add_hop2_leaf(station: IPRoute, minor: int) -> None:
    htb.add_class(station, CLOUD_LINK, minor, ASSURED_MBPS, MAX_SHAPED_MBPS, htb.HANDLE | TOTAL)
    htb.add_queue(station, CLOUD_LINK, minor)
