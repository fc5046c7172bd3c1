"""Token-bucket shaping with the kernel's HTB, through pyroute2: adding classes, changing their rates, counting.

An HTB class sends while its tokens are not negative and may then owe up to one frame. With tokens for `burst` bytes, a
class compensates for a timer that is late by burst/rate, and sends that many bytes at once after a pause. The burst is
therefore chosen as a time: longer than the kernel timer's lateness, too short to distort a 64 KB payload.
"""

import errno
import socket
import struct
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_ECHO, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_GETTCLASS, RTM_NEWTCLASS
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from netem.kernel import netlink
from netem.wire import FRAME_BYTES

HANDLE = 0x10000  # the root qdisc 1: of every shaped link
QUEUE_PACKETS = 1000
ETH_P_IP = 0x0800
BURST_S = 50e-6
MIN_BURST_BYTES = 200


@dataclass(frozen=True)
class ClassCounters:
    """Traffic of a class: frames sent (with their Ethernet header), queued bytes and dropped packets."""

    sent_bytes: int
    sent_packets: int
    backlog_bytes: int
    dropped_packets: int


def bytes_per_s(rate_mbps: float) -> int:
    """A rate in the kernel's unit, at least 1."""
    return max(1, round(rate_mbps * 1e6 / 8))


def burst_bytes(rate_mbps: float) -> int:
    """The bytes that a class may send at once after a pause."""
    return max(MIN_BURST_BYTES, round(rate_mbps * 1e6 / 8 * BURST_S))


def add_htb(ip: IPRoute, index: int, default_minor: int) -> None:
    """Add an HTB root; packets that match no filter go to class 1:`default_minor`, so none bypass the shaping.

    Call it while the link is down: on a link that is up the kernel waits about 20 ms.
    """
    ip.tc("add", "htb", index=index, handle=HANDLE, default=default_minor)


def add_class(ip: IPRoute, index: int, minor: int, rate_mbps: float, ceil_mbps: float, parent: int = HANDLE) -> None:
    """Add class 1:`minor` with an assured rate of `rate_mbps` and a ceiling of `ceil_mbps`."""
    ip.tc(
        "add-class",
        "htb",
        index=index,
        handle=HANDLE | minor,
        parent=parent,
        rate=bytes_per_s(rate_mbps),
        ceil=bytes_per_s(ceil_mbps),
        burst=burst_bytes(rate_mbps),
        cburst=burst_bytes(ceil_mbps),
        quantum=FRAME_BYTES,
    )


def add_queue(ip: IPRoute, index: int, minor: int) -> None:
    """Add a FIFO queue as the leaf of class 1:`minor`."""
    ip.tc("add", "pfifo", index=index, handle=(minor + 1) << 16, parent=HANDLE | minor, limit=QUEUE_PACKETS)


def add_source_filter(ip: IPRoute, index: int, source: str, minor: int) -> None:
    """Classify packets from the address `source` into class 1:`minor`."""
    (number,) = struct.unpack("!I", socket.inet_aton(source))
    keys = [f"{number:#010x}/0xffffffff+12"]  # 12: the offset of the source address in an IPv4 header
    ip.tc(
        "add-filter",
        "u32",
        index=index,
        parent=HANDLE,
        prio=1,
        protocol=ETH_P_IP,
        target=HANDLE | minor,
        keys=keys,
    )


def read_classes(ip: IPRoute, index: int) -> dict[int, ClassCounters]:
    """The counters of every class of a link, by minor number."""
    found = {}
    for message in ip.get_classes(index=index):
        stats = message.get_attr("TCA_STATS2")
        sent, queue = stats.get_attr("TCA_STATS_BASIC"), stats.get_attr("TCA_STATS_QUEUE")
        counters = ClassCounters(sent["bytes"], sent["packets"], queue["backlog"], queue["drops"])
        found[message["handle"] & 0xFFFF] = counters
    return found


def read_direct_packets(ip: IPRoute, index: int) -> int:
    """Packets that bypassed the HTB root of a link unshaped. Raises LookupError if the link has none."""
    for message in ip.get_qdiscs(index=index):
        if message["handle"] == HANDLE:
            return int(message.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_INIT")["direct_pkts"])
    raise LookupError(f"link {index} has no HTB root")


class RateChanger:
    """Changes the rate of the HTB class 1:`minor` of link `index`, in the namespace current at construction.

    Rates change often and for many agents at once, so this is optimized: pyroute2 encodes the request once, and each
    change overwrites the numbers in it. A change takes 0.02 ms and one descriptor; through pyroute2 it takes 0.4 ms
    and four descriptors.
    """

    # struct tc_htb_opt (linux/pkt_sched.h): two ratespecs (cell_log, linklayer, overhead, cell_align, mpu, rate), then
    # buffer, cbuffer (both in ticks), quantum, level, prio.
    _PARAMETERS = struct.Struct("=BBHhHIBBHhHIIIIII")
    _ETHERNET = 1
    _TICK_NS = 64

    def __init__(self, index: int, minor: int) -> None:
        message = tcmsg()
        message["index"], message["handle"], message["parent"] = index, HANDLE | minor, HANDLE
        parameters = {"rate": 1, "ceil": 1, "quantum": FRAME_BYTES}
        message["attrs"] = [
            ("TCA_KIND", "htb"),
            ("TCA_OPTIONS", {"attrs": [("TCA_HTB_PARMS", parameters)]}),
        ]
        message["header"]["type"] = RTM_NEWTCLASS
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
        message.encode()
        self._request = bytearray(message.data)
        self._offset = len(self._request) - self._PARAMETERS.size  # they are the last attribute
        self.kernel = netlink.open_socket()

    def set_rate(self, rate_mbps: float) -> None:
        """Set the class's assured rate and ceiling. Raises OSError if the kernel refuses."""
        rate = bytes_per_s(rate_mbps)
        ratespec = (0, self._ETHERNET, 0, 0, 0, rate)
        ticks = round(burst_bytes(rate_mbps) / rate * 1e9 / self._TICK_NS)
        self._PARAMETERS.pack_into(self._request, self._offset, *ratespec, *ratespec, ticks, ticks, FRAME_BYTES, 0, 0)
        netlink.exchange(self.kernel, self._request, "change of a rate")

    def close(self) -> None:
        self.kernel.close()


class ByteMeter:
    """Reads how many bytes the HTB class 1:`minor` of link `index` has sent, in about 0.02 ms.

    It asks for that class alone; a dump of all classes takes 80 ms where there are 256.

    Args:
        kernel: a routing netlink socket of the link's namespace.
    """

    # struct nlmsghdr, struct tcmsg; attributes are a length and a type each (linux/netlink.h, linux/rtnetlink.h).
    _REQUEST = struct.Struct("=IHHIIBxxxiIII")
    _ATTRIBUTE = struct.Struct("=HH")
    _TCA_STATS2, _TCA_STATS_BASIC = 7, 1
    _BYTES = struct.Struct("=Q")  # first of struct gnet_stats_basic

    def __init__(self, kernel: socket.socket, index: int, minor: int) -> None:
        header = self._REQUEST.size, RTM_GETTCLASS, NLM_F_REQUEST | NLM_F_ECHO, 0, 0
        self._request = self._REQUEST.pack(*header, socket.AF_UNSPEC, index, HANDLE | minor, HANDLE, 0)
        self._kernel = kernel

    def read(self) -> int:
        """Bytes of Ethernet frames. Raises OSError if the kernel refuses."""
        answer = memoryview(netlink.ask(self._kernel, self._request, "count of a class"))
        statistics = self._find(answer[self._REQUEST.size :], self._TCA_STATS2)
        (sent_bytes,) = self._BYTES.unpack_from(self._find(statistics, self._TCA_STATS_BASIC))
        return int(sent_bytes)

    def _find(self, attributes: memoryview, kind: int) -> memoryview:
        """The content of the first attribute of a kind. Raises OSError if there is none."""
        while len(attributes) >= self._ATTRIBUTE.size:
            size, found = self._ATTRIBUTE.unpack_from(attributes)
            if found == kind:
                return attributes[self._ATTRIBUTE.size : size]
            attributes = attributes[max(-(-size // 4) * 4, self._ATTRIBUTE.size) :]
        raise OSError(errno.ENODATA, f"a class without attribute {kind}")
