"""Requests for links, addresses, routes and neighbours, as `netlink.Message`s."""

import socket
import struct

from netem.netlink import CREATE, Message, attribute, text, u32

RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWNEIGH = 16, 20, 24, 28
IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_GSO_MAX_SEGS = 1, 3, 18, 26, 28, 40
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INET_CONF, IPV4_DEVCONF_FORWARDING = 1, 1
IFA_LOCAL = 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_METRICS = 1, 4, 5, 8
RTAX_INITCWND, RTAX_RTO_MIN = 11, 13
RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST, RTNH_F_ONLINK = 254, 4, 1, 4
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253
NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80
LOOPBACK_INDEX = 1


def _link(index: int, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def veth_pair(
    index: int, name: str, mac: bytes, peer_index: int, peer_name: str, peer_mac: bytes, peer_ns: int
) -> Message:
    """Make a veth here, its peer in the namespace behind the descriptor `peer_ns`; both down.

    TCP is told to build no segment larger than a frame on either end: with segmentation offload a token bucket passes
    up to 64 KB at once, which distorts payloads of that size by tens of percent.
    """
    peer = (
        _link(peer_index)
        + text(IFLA_IFNAME, peer_name)
        + attribute(IFLA_ADDRESS, peer_mac)
        + u32(IFLA_GSO_MAX_SEGS, 1)
        + u32(IFLA_NET_NS_FD, peer_ns)
    )
    info = text(IFLA_INFO_KIND, "veth") + attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer))
    body = (
        _link(index)
        + text(IFLA_IFNAME, name)
        + attribute(IFLA_ADDRESS, mac)
        + u32(IFLA_GSO_MAX_SEGS, 1)
        + attribute(IFLA_LINKINFO, info)
    )
    return Message(RTM_NEWLINK, CREATE, body)


def link_of_kind(index: int, kind: str) -> Message:
    """Make a link of a kind that needs no settings (`bridge`, `ifb`)."""
    return Message(RTM_NEWLINK, CREATE, _link(index) + attribute(IFLA_LINKINFO, text(IFLA_INFO_KIND, kind)))


def link_up(index: int) -> Message:
    return Message(RTM_NEWLINK, 0, _link(index, IFF_UP))


def forwarding_link_up(index: int) -> Message:
    """Bring a link up and forward what arrives on it (not by /proc/sys, which containers often mount read-only)."""
    inet = attribute(IFLA_INET_CONF, u32(IPV4_DEVCONF_FORWARDING, 1))
    return Message(RTM_NEWLINK, 0, _link(index, IFF_UP) + attribute(IFLA_AF_SPEC, attribute(socket.AF_INET, inet)))


def address(index: int, ip: bytes) -> Message:
    """Give a link the address `ip` (4 bytes) with a 32-bit prefix."""
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, SCOPE_UNIVERSE, index) + attribute(IFA_LOCAL, ip)
    return Message(RTM_NEWADDR, CREATE, body)


def host_route(index: int, ip: bytes) -> Message:
    """Reach `ip` over a link."""
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, SCOPE_LINK, RTN_UNICAST, 0)
    return Message(RTM_NEWROUTE, CREATE, body + attribute(RTA_DST, ip) + u32(RTA_OIF, index))


def default_route(index: int, gateway: bytes, initial_window_segments: int, least_timeout_ms: int) -> Message:
    """Reach everything through `gateway` on a link.

    TCP starts, and starts again after a pause, with that window, and waits at least so long before it sends again.
    """
    body = struct.pack(
        "=BBBBBBBBI", socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK
    )
    metrics = u32(RTAX_INITCWND, initial_window_segments) + u32(RTAX_RTO_MIN, least_timeout_ms)
    body += attribute(RTA_GATEWAY, gateway) + u32(RTA_OIF, index) + attribute(RTA_METRICS, metrics)
    return Message(RTM_NEWROUTE, CREATE, body)


def neighbour(index: int, ip: bytes, mac: bytes) -> Message:
    """Fix who has `ip` on a link, so that no transfer waits for ARP."""
    body = struct.pack("=BxHiHBB", socket.AF_INET, 0, index, NUD_PERMANENT, 0, 0)
    return Message(RTM_NEWNEIGH, CREATE, body + attribute(NDA_DST, ip) + attribute(NDA_LLADDR, mac))
