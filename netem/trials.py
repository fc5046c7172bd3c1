"""Kernel features tried out in a scratch network namespace, which ends with this process; `probe` runs it as a child.

Prints a JSON object: feature -> why it doesn't work (empty if it does), or only `failed` -> why nothing could be tried.
"""

import json
import struct
import sys

from netem import namespaces, rtnl, shaping
from netem.netlink import Message, Netlink

LINK = 50
MAC, PEER_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
# struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter. struct tc_tbf_qopt in TCA_TBF_PARMS: two rates
# (the second one is the peak, unused), limit, burst in ticks, mtu.
NETEM_OPTIONS = struct.pack("=IIIIII", 1000, 1000, 0, 0, 0, 0)
TBF_RATE = struct.pack("=BBHhHI", 0, shaping.LINKLAYER_ETHERNET, 0, 0, 0, 125_000)
TBF_OPTIONS = struct.pack("=HH", 36 + 4, 1) + TBF_RATE + bytes(12) + struct.pack("=III", 10_000, 250_000, 0)


def _refusal(kernel: Netlink, messages: list[Message]) -> str:
    try:
        kernel.request(messages)
    except OSError as error:
        return str(error)
    return ""


def try_features(privilege: str) -> dict[str, str]:
    """See the module's docstring. Raises OSError if there is no scratch namespace to be had."""
    if privilege == "userns":
        namespaces.enter_user_namespace()
    scratch, other = namespaces.NetworkNamespace(), namespaces.NetworkNamespace()
    with scratch.entered():
        kernel = Netlink()

    def veth(index: int) -> Message:
        return rtnl.veth_pair(index, f"scratch{index}", MAC, index + 1, f"peer{index}", PEER_MAC, other.fd)

    htb = [shaping.htb(LINK, default_minor=1), shaping.htb_class(LINK, 1, 10.0, 10.0, new=True)]
    found = {
        "network namespaces": "",
        "veth": _refusal(kernel, [veth(LINK)]),
        "HTB": _refusal(kernel, htb),
        "pfifo": _refusal(kernel, [shaping.pfifo(LINK, shaping.HANDLE | 1, 100)]),
        "u32": _refusal(kernel, [*shaping.source_table(LINK), shaping.source_filter(LINK, bytes(4), 1)]),
        # On devices of their own: a link has one root scheduler.
        "TBF": _refusal(kernel, [veth(LINK + 2), shaping.qdisc(LINK + 2, "tbf", TBF_OPTIONS)]),
        "netem": _refusal(kernel, [veth(LINK + 4), shaping.qdisc(LINK + 4, "netem", NETEM_OPTIONS)]),
    }
    for number, kind in enumerate(("bridge", "ifb")):
        found[kind] = _refusal(kernel, [rtnl.link_of_kind(100 + number, kind)])
    return found


if __name__ == "__main__":
    try:
        print(json.dumps(try_features(sys.argv[1])))
    except OSError as reason:
        print(json.dumps({"failed": str(reason)}))
