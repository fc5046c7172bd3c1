"""Tries kernel features in a scratch network namespace, which ends with this process; `probe` runs it as a child.

Prints a JSON object that maps each feature to the reason why it doesn't work (empty if it does), or only `failed` to
the reason why none could be tried.
"""

import errno
import json
import os
import sys
from collections.abc import Callable

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from netem.kernel import htb, namespaces, netem_qdisc

LINK, IFB = 50, 60
UNKNOWN_KIND = (errno.ENOENT, errno.EOPNOTSUPP)  # of schedulers, of links


def _refusal(trial: Callable[..., object], *arguments: object, **settings: object) -> str:
    try:
        trial(*arguments, **settings)
    except NetlinkError as error:
        return "the kernel doesn't know it" if error.code in UNKNOWN_KIND else os.strerror(error.code)
    return ""


def try_features(privilege: str) -> dict[str, str]:
    """See the module's docstring. Raises OSError if no scratch namespace can be made."""
    if privilege == "userns":
        namespaces.enter_user_namespace()
    with namespaces.NetworkNamespace().entered():
        kernel = IPRoute()

    def veth(index: int) -> None:
        kernel.link("add", index=index, ifname=f"scratch{index}", kind="veth", peer=f"peer{index}")

    def htb_root() -> None:
        htb.add_htb(kernel, LINK, default_minor=1)
        htb.add_class(kernel, LINK, 1, 10.0, 10.0)

    found = {"network namespaces": "", "veth": _refusal(veth, LINK)}
    if found["veth"]:
        return found | dict.fromkeys(
            ("HTB", "pfifo", "u32", "TBF", "netem", "act_mirred"), "can't be tried without veth"
        )
    veth(LINK + 2)  # a link has one root scheduler
    veth(LINK + 4)
    return found | {  # in this order
        "HTB": _refusal(htb_root),
        "pfifo": _refusal(htb.add_queue, kernel, LINK, 1),
        "u32": _refusal(htb.add_source_filter, kernel, LINK, "10.64.0.1", 1),
        "TBF": _refusal(kernel.tc, "add", "tbf", index=LINK + 2, rate=125_000, burst=10_000, latency="50ms"),
        "netem": _refusal(kernel.tc, "add", "netem", index=LINK + 4, delay=1000),
        "bridge": _refusal(kernel.link, "add", ifname="scratchbr", kind="bridge"),
        "ifb": _refusal(kernel.link, "add", index=IFB, ifname="scratchifb", kind="ifb"),
        "act_mirred": _refusal(netem_qdisc.redirect_arrivals, kernel, LINK, IFB),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(try_features(sys.argv[1])))
    except OSError as reason:
        print(json.dumps({"failed": str(reason)}))
