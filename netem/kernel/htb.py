"""Token-bucket shaping with the kernel's HTB, through pyroute2: making classes, changing their rates, counting.

An HTB class sends while its tokens are not negative and may then owe up to one frame; a class with tokens for `burst`
bytes makes up for a timer that came late by burst/rate, and passes that much at once after a pause. So the burst is
chosen as a time: long enough for the kernel timer's lateness, short enough not to distort a 64 KB payload.
"""

import os
import socket
import struct
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_NEWQDISC, RTM_NEWTCLASS, TC_H_ROOT
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from netem.wire import FRAME_BYTES

HANDLE = 0x10000  # the root qdisc 1: of every shaped link
QUEUE_PACKETS = 1000
ETH_P_IP, ETH_P_ALL = 0x0800, 0x0003
INGRESS = 0xFFFF0000  # the handle of a link's ingress qdisc
BURST_S = 50e-6
MIN_BURST_BYTES = 200

# linux/netlink.h and linux/rtnetlink.h
_NETLINK_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_NETLINK_ERROR = struct.Struct("=16xi")  # a header, then 0 or a negative errno
_TC_MESSAGE = struct.Struct("=B3xiIII")  # family, link, handle, parent, info
_ATTRIBUTE = struct.Struct("=HH")
_TCA_KIND, _TCA_OPTIONS = 1, 2


@dataclass(frozen=True)
class ClassCounters:
    """What a class has sent (frames with their Ethernet header) and what waits or was dropped in it."""

    sent_bytes: int
    sent_packets: int
    backlog_bytes: int
    dropped_packets: int


def bytes_per_s(rate_mbps: float) -> int:
    """The kernel's unit of rates."""
    return max(1, round(rate_mbps * 1e6 / 8))


def burst_bytes(rate_mbps: float) -> int:
    """Bytes that a class may send at once after a pause."""
    return max(MIN_BURST_BYTES, round(rate_mbps * 1e6 / 8 * BURST_S))


def add_htb(ip: IPRoute, index: int, default_minor: int) -> None:
    """An HTB root; what no filter claims goes to class 1:`default_minor`, never past the shaping.

    Quick on a link that is still down; on one that is up the kernel waits some 20 ms.
    """
    ip.tc("add", "htb", index=index, handle=HANDLE, default=default_minor)


def add_class(ip: IPRoute, index: int, minor: int, rate_mbps: float, ceil_mbps: float, parent: int = HANDLE) -> None:
    """Class 1:`minor`, assured `rate_mbps`, at most `ceil_mbps`."""
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
    """A first-in-first-out queue as the leaf of class 1:`minor`."""
    ip.tc("add", "pfifo", index=index, handle=(minor + 1) << 16, parent=HANDLE | minor, limit=QUEUE_PACKETS)


def add_source_filter(ip: IPRoute, index: int, source: str, minor: int) -> None:
    """Send what comes from the address `source` to class 1:`minor`."""
    (number,) = struct.unpack("!I", socket.inet_aton(source))
    keys = [f"{number:#010x}/0xffffffff+12"]  # 12: where an IPv4 header has its source
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


def add_netem(index: int, options: bytes) -> None:
    """A root netem on link `index` of the current namespace; `options` by `impairments.netem_options`.

    Raises OSError if the kernel refuses, FileNotFoundError if it has no netem.
    """
    kind, root = b"netem\0", TC_H_ROOT
    attributes = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(kind), _TCA_KIND) + kind + bytes(-len(kind) % 4)
    attributes += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(options), _TCA_OPTIONS) + options
    body = _TC_MESSAGE.pack(socket.AF_UNSPEC, index, 0, root, 0) + attributes
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    request = _NETLINK_HEADER.pack(_NETLINK_HEADER.size + len(body), RTM_NEWQDISC, flags, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        kernel.send(request)
        (code,) = _NETLINK_ERROR.unpack_from(kernel.recv(1 << 16))
    if code:
        raise OSError(-code, f"netem on link {index}: {os.strerror(-code)}")


def redirect_arrivals(ip: IPRoute, index: int, to: int) -> None:
    """Send all that arrives on link `index` out by the ifb `to`, which hands it back as if it arrived only then."""
    ip.tc("add", "ingress", index=index)
    redirect = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": to}
    ip.tc(
        "add-filter",
        "u32",
        index=index,
        parent=INGRESS,
        prio=1,
        protocol=ETH_P_ALL,
        target=HANDLE,  # unused, but pyroute2 wants one
        keys=["0x0/0x0+0"],
        action=[redirect],
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
    """Packets that the HTB root of a link let past unshaped."""
    for message in ip.get_qdiscs(index=index):
        if message["handle"] == HANDLE:
            return int(message.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_INIT")["direct_pkts"])
    raise LookupError(f"link {index} has no HTB root")


class RateChanger:
    """Changes the rate of one HTB class: 1:`minor` of link `index`, in the namespace in which this was made.

    Rates change all the time and for many agents at once, so this is made fast: pyroute2 encodes the request once, and
    each change overwrites the numbers in it. That takes 0.02 ms and one descriptor, instead of the 0.4 ms and four of
    a call through pyroute2.
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
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)

    def set_rate(self, rate_mbps: float) -> None:
        """Give the class this rate, assured and at most. Raises OSError if the kernel refuses."""
        rate = bytes_per_s(rate_mbps)
        ratespec = (0, self._ETHERNET, 0, 0, 0, rate)
        ticks = round(burst_bytes(rate_mbps) / rate * 1e9 / self._TICK_NS)
        self._PARAMETERS.pack_into(self._request, self._offset, *ratespec, *ratespec, ticks, ticks, FRAME_BYTES, 0, 0)
        self._socket.send(self._request)
        (code,) = _NETLINK_ERROR.unpack_from(self._socket.recv(4096))
        if code:
            raise OSError(-code, f"change of a rate: {os.strerror(-code)}")

    def close(self) -> None:
        self._socket.close()
