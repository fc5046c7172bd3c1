"""Token-bucket shaping with the kernel's HTB: requests that make and change it, and its counters.

An HTB class sends while its tokens are not negative and may then owe up to one frame; a class with tokens for `burst`
bytes makes up for a timer that came late by burst/rate, and passes that much at once after a pause. So the burst is
chosen as a time: long enough for the kernel timer's lateness, short enough not to distort a 64 KB payload.
"""

import socket
import struct
import sys
from dataclasses import dataclass

from netem.netlink import CREATE, Message, attribute, attributes, text, u32
from netem.wire import FRAME_BYTES

RTM_NEWQDISC, RTM_GETQDISC = 36, 38
RTM_NEWTCLASS, RTM_GETTCLASS = 40, 42
RTM_NEWTFILTER = 44
TC_H_ROOT = 0xFFFFFFFF
TCA_KIND, TCA_OPTIONS, TCA_STATS2 = 1, 2, 7
TCA_STATS_BASIC, TCA_STATS_QUEUE = 1, 3
TCA_HTB_PARMS, TCA_HTB_INIT, TCA_HTB_RATE64, TCA_HTB_CEIL64 = 1, 2, 6, 7
TCA_U32_CLASSID, TCA_U32_HASH, TCA_U32_LINK, TCA_U32_DIVISOR, TCA_U32_SEL = 1, 2, 3, 4, 5
TC_U32_TERMINAL = 1
LINKLAYER_ETHERNET = 1
HTB_VERSION = 3
TICK_NS = 64  # the kernel's unit of time in scheduler parameters

HANDLE = 0x10000  # the root qdisc 1: of every shaped link
MAX_U32 = 0xFFFFFFFF
U32_BUCKETS = 0x00100000  # hash table 1 of the u32 classifier, one bucket for each last octet
IPV4_SOURCE_OFFSET = 12

_TC_BYTES = 20  # struct tcmsg
_IPV4_PROTOCOL = int.from_bytes(b"\x08\x00", sys.byteorder)  # EtherType, in network byte order

BURST_S = 50e-6
MIN_BURST_BYTES = 200


@dataclass(frozen=True)
class ClassCounters:
    """What a class has sent (frames with their Ethernet header) and what waits or was dropped in it."""

    sent_bytes: int
    sent_packets: int
    backlog_bytes: int
    dropped_packets: int


def _tc(index: int, handle: int, parent: int, info: int = 0) -> bytes:
    return struct.pack("=BxHiIII", socket.AF_UNSPEC, 0, index, handle, parent, info)


def qdisc(index: int, kind: str, options: bytes, handle: int = HANDLE, parent: int = TC_H_ROOT) -> Message:
    """Attach a qdisc. Quick at the root of a link that is still down; on one that is up the kernel waits some 20 ms."""
    body = _tc(index, handle, parent) + text(TCA_KIND, kind) + attribute(TCA_OPTIONS, options)
    return Message(RTM_NEWQDISC, CREATE, body)


def htb(index: int, default_minor: int) -> Message:
    """An HTB root; what no filter claims goes to class 1:`default_minor`, never past the shaping."""
    options = attribute(TCA_HTB_INIT, struct.pack("=IIIII", HTB_VERSION, 10, default_minor, 0, 0))
    return qdisc(index, "htb", options)


def pfifo(index: int, parent: int, limit_packets: int) -> Message:
    """A first-in-first-out queue as the leaf of class `parent`."""
    return qdisc(index, "pfifo", struct.pack("=I", limit_packets), handle=0, parent=parent)


def burst_bytes(rate_mbps: float) -> int:
    """Bytes that a class may send at once after a pause."""
    return max(MIN_BURST_BYTES, round(rate_mbps * 1e6 / 8 * BURST_S))


def htb_class(
    index: int, minor: int, rate_mbps: float, ceil_mbps: float, parent: int = HANDLE, new: bool = False
) -> Message:
    """Make (`new`) or change class 1:`minor`. A change replaces every parameter, hence one function for both."""
    words = b""
    ticks = []
    rates64 = []
    for mbps in (rate_mbps, ceil_mbps):
        bytes_per_s = max(1, round(mbps * 1e6 / 8))
        words += struct.pack("=BBHhHI", 0, LINKLAYER_ETHERNET, 0, 0, 0, min(bytes_per_s, MAX_U32))
        ticks.append(min(MAX_U32, round(burst_bytes(mbps) / bytes_per_s * 1e9 / TICK_NS)))
        rates64.append(struct.pack("=Q", bytes_per_s))
    words += struct.pack("=IIIII", *ticks, FRAME_BYTES, 0, 0)  # burst, ceil burst, quantum, level (unused), priority
    options = attribute(TCA_HTB_PARMS, words)
    options += attribute(TCA_HTB_RATE64, rates64[0]) + attribute(TCA_HTB_CEIL64, rates64[1])
    body = _tc(index, HANDLE | minor, parent) + text(TCA_KIND, "htb") + attribute(TCA_OPTIONS, options)
    return Message(RTM_NEWTCLASS, CREATE if new else 0, body)


def _u32(index: int, handle: int, options: bytes) -> Message:
    info = 1 << 16 | _IPV4_PROTOCOL  # priority 1
    body = _tc(index, handle, HANDLE, info) + text(TCA_KIND, "u32") + attribute(TCA_OPTIONS, options)
    return Message(RTM_NEWTFILTER, CREATE, body)


def _selector(flags: int, mask: int, value: int, hash_mask: int = 0) -> bytes:
    """Compare the source address, under `mask`, with `value`; hash it under `hash_mask`."""
    head = struct.pack("=BBBxHHhh", flags, 0, 1, 0, 0, 0, IPV4_SOURCE_OFFSET) + struct.pack("!I", hash_mask)
    key = struct.pack("!II", mask, value) + struct.pack("=ii", IPV4_SOURCE_OFFSET, 0)
    return attribute(TCA_U32_SEL, head + key)


def source_table(index: int) -> list[Message]:
    """A hash table over the source address's last octet, so that the cost of a look-up doesn't grow with the agents."""
    return [
        _u32(index, U32_BUCKETS, u32(TCA_U32_DIVISOR, 256)),
        _u32(index, 0, u32(TCA_U32_LINK, U32_BUCKETS) + _selector(0, 0, 0, hash_mask=0xFF)),
    ]


def source_filter(index: int, ip: bytes, minor: int) -> Message:
    """Send what comes from `ip` (4 bytes) to class 1:`minor`."""
    bucket = U32_BUCKETS | ip[3] << 12
    match = _selector(TC_U32_TERMINAL, 0xFFFFFFFF, int.from_bytes(ip, "big"))
    return _u32(index, 0, u32(TCA_U32_CLASSID, HANDLE | minor) + u32(TCA_U32_HASH, bucket) + match)


def read_classes(index: int) -> Message:
    """Ask (by dump) for all classes of a link."""
    return Message(RTM_GETTCLASS, 0, _tc(index, 0, 0))


def read_qdisc(index: int) -> Message:
    """Ask (by get) for a link's root qdisc."""
    return Message(RTM_GETQDISC, 0, _tc(index, 0, TC_H_ROOT))


def parse_class(body: bytes) -> tuple[int, ClassCounters]:
    """(minor, counters) from a class message."""
    (handle,) = struct.unpack_from("=I", body, 8)
    stats = attributes(attributes(body[_TC_BYTES:])[TCA_STATS2])
    sent_bytes, sent_packets = struct.unpack_from("=QI", stats[TCA_STATS_BASIC])
    _, backlog, drops = struct.unpack_from("=III", stats[TCA_STATS_QUEUE])
    return handle & 0xFFFF, ClassCounters(sent_bytes, sent_packets, backlog, drops)


def parse_direct_packets(body: bytes) -> int:
    """Packets that an HTB root let past unshaped, from a qdisc message."""
    options = attributes(attributes(body[_TC_BYTES:])[TCA_OPTIONS])
    return int(struct.unpack_from("=IIIII", options[TCA_HTB_INIT])[4])
