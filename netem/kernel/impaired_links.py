"""Where impairments are placed: netems, never in front of a token bucket nor on a sender's own interface.

    up, an agent's own      behind hop 1: where the agent's frames arrive at the base station
    up, shared              behind hop 2: where the channel's frames arrive at the cloud
    down, shared            where the cloud's frames arrive at the base station
    down, an agent's own    where the base station sends to the agent

Packets that arrive on a link can't be queued there, so they are redirected through an ifb device of the same namespace
with the netem at its root. Behind a bucket, a netem receives frames at the bucket's rate and leaves that rate as it
is. In front of one, it would hide the bucket's full queue from the sender and send bursts to the bucket. On a sender's
own interface, the kernel tells TCP about packets that a full netem drops, which no real path does.
"""

import contextlib
import errno
import platform
from collections.abc import Iterator

from pyroute2 import IPRoute

from netem.impairments import Impairment
from netem.kernel import netem_qdisc, netlink
from netem.kernel.namespaces import NetworkNamespace
from netem.link import LinkError


def impair_arrivals(
    kernel: IPRoute, namespace: NetworkNamespace, link: int, ifb: int, impairment: Impairment, rate_mbps: float
) -> None:
    """Impair the packets that arrive on `link` at up to `rate_mbps`, through a new ifb of index `ifb`.

    Raises LinkError if the kernel lacks a feature for it.
    """
    if not impairment.active:
        return
    with _missing_as_link_error("ifb"):
        kernel.link("add", index=ifb, ifname=f"delay{ifb}", kind="ifb", gso_max_segs=1)
    impair_departures(namespace, ifb, impairment, rate_mbps)
    kernel.link("set", index=ifb, state="up")
    with _missing_as_link_error("act_mirred"):
        netem_qdisc.redirect_arrivals(kernel, link, ifb)


def impair_departures(namespace: NetworkNamespace, link: int, impairment: Impairment, rate_mbps: float) -> None:
    """Impair the packets that leave by `link` at up to `rate_mbps`. Raises LinkError if the kernel has no netem."""
    if not impairment.active:
        return
    with namespace.entered(), _missing_as_link_error("netem"):
        netem_qdisc.add_netem(link, netem_qdisc.netem_options(impairment, rate_mbps))


@contextlib.contextmanager
def _missing_as_link_error(feature: str) -> Iterator[None]:
    """Raise LinkError in place of the errors by which the kernel says that it doesn't know `feature`."""
    try:
        with netlink.errors_as_os_errors():
            yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
            raise
        raise LinkError(
            f"this kernel has no {feature}, without which it can't delay, lose or reorder packets: modprobe -a "
            f"sch_netem ifb act_mirred (on Ubuntu from linux-modules-extra-{platform.release()})"
        ) from None
