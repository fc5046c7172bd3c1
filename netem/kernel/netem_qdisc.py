"""The kernel's netem qdisc: encoding an impairment as netlink attributes, adding netems, redirecting packets to them.

Encoded here (linux/pkt_sched.h) because pyroute2 knows neither Gilbert-Elliott loss nor delay tables.
"""

import functools
import socket
import statistics
import struct

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_NEWQDISC, TC_H_ROOT

from netem.impairments import MAX_JITTER_DEVIATIONS, Distribution, Impairment
from netem.kernel import htb, netlink

TABLE_ENTRIES = 4096
TABLE_SCALE = 8192  # NETEM_DIST_SCALE: the entry of one standard deviation
PARETO_SHAPE = 3.0  # as in iproute2, like the mixture of paretonormal: three parts Pareto, one part normal
PARETO_PART = 0.75
# Cutting the tails lowers the deviation and normalizing widens the tails again; 30 rounds converge to 1e-6.
CUTTING_ROUNDS = 30

ETH_P_ALL = 0x0003
INGRESS = 0xFFFF0000  # the handle of a link's ingress qdisc

# linux/netlink.h and linux/rtnetlink.h
_NETLINK_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_TC_MESSAGE = struct.Struct("=B3xiIII")  # family, link, handle, parent, info
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 1 << 15
_TCA_KIND, _TCA_OPTIONS = 1, 2
# Attributes and structures of sch_netem: linux/pkt_sched.h.
_CORRELATIONS, _DELAY_TABLE, _REORDER, _LOSS = 1, 2, 3, 5
_GILBERT_ELLIOTT = 2  # NETEM_LOSS_GE, nested in the loss attribute
_MAIN = struct.Struct("=IIIIII")  # tc_netem_qopt: delay (ticks), limit, loss, gap, duplicate, jitter (ticks)
_TICK_NS = 64


def add_netem(index: int, options: bytes) -> None:
    """Add a root netem to link `index` of the current namespace; `options` come from `netem_options`.

    Raises OSError if the kernel refuses, FileNotFoundError if it has no netem.
    """
    kind, root = b"netem\0", TC_H_ROOT
    attributes = _attribute(_TCA_KIND, kind) + _attribute(_TCA_OPTIONS, options)
    body = _TC_MESSAGE.pack(socket.AF_UNSPEC, index, 0, root, 0) + attributes
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    request = _NETLINK_HEADER.pack(_NETLINK_HEADER.size + len(body), RTM_NEWQDISC, flags, 1, 0) + body
    with netlink.open_socket() as kernel:
        netlink.exchange(kernel, request, f"netem on link {index}")


def redirect_arrivals(ip: IPRoute, index: int, to: int) -> None:
    """Redirect every packet that arrives on link `index` through the ifb `to`, whose qdisc can then delay it."""
    ip.tc("add", "ingress", index=index)
    redirect = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": to}
    ip.tc(
        "add-filter",
        "u32",
        index=index,
        parent=INGRESS,
        prio=1,
        protocol=ETH_P_ALL,
        target=htb.HANDLE,  # unused, but pyroute2 wants one
        keys=["0x0/0x0+0"],
        action=[redirect],
    )


def netem_options(impairment: Impairment, rate_mbps: float) -> bytes:
    """Encode `impairment` as the TCA_OPTIONS of a netem whose packets arrive at no more than `rate_mbps`."""
    loss, reorder = impairment.loss, impairment.reorder
    random_loss = loss.percent if loss and loss.percent is not None else 0.0
    main = _MAIN.pack(
        _ticks(impairment.delay_ms),
        impairment.queue_packets(rate_mbps),
        _probability(random_loss),
        1 if reorder else 0,  # the gap: any packet may overtake
        0,
        _ticks(impairment.jitter_ms),
    )
    attributes = []
    loss_correlation = loss.correlation if loss else 0.0
    if impairment.correlation or loss_correlation:
        correlations = struct.pack("=III", _probability(impairment.correlation), _probability(loss_correlation), 0)
        attributes.append(_attribute(_CORRELATIONS, correlations))
    if impairment.distribution != "uniform":
        table = delay_table(impairment.distribution)
        attributes.append(_attribute(_DELAY_TABLE, struct.pack(f"={len(table)}h", *table)))
    if reorder:
        chances = struct.pack("=II", _probability(reorder.percent), _probability(reorder.correlation))
        attributes.append(_attribute(_REORDER, chances))
    if loss and loss.p is not None and loss.r is not None:
        # tc_netem_gemodel: p, r, h, k1. The kernel loses a packet with probability k1 in the good state and 1 - h in
        # the bad one.
        model = (loss.p, loss.r, 100.0 - loss.loss_bad, loss.loss_good)
        states = struct.pack("=IIII", *map(_probability, model))
        attributes.append(_attribute(_LOSS | _NESTED, _attribute(_GILBERT_ELLIOTT, states)))
    return main + b"".join(attributes)


def _ticks(milliseconds: float) -> int:
    return round(milliseconds * 1e6 / _TICK_NS)


def _probability(percent: float) -> int:
    return round(percent / 100 * (2**32 - 1))


def _attribute(kind: int, content: bytes) -> bytes:
    padding = -len(content) % 4
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content + bytes(padding)


@functools.cache
def delay_table(distribution: Distribution) -> tuple[int, ...]:
    """Quantiles at equal distances, in units of 1/8192 standard deviation, from which the kernel draws delays.

    Every table is normalized to mean 0 and standard deviation 1, its tails cut at four deviations, so that `delay_ms`
    is the mean and `jitter_ms` the standard deviation. The shapes are those of iproute2's tables.
    """
    steps = [(index + 0.5) / TABLE_ENTRIES for index in range(TABLE_ENTRIES)]
    normal = [statistics.NormalDist().inv_cdf(step) for step in steps]
    pareto = [(1 - step) ** (-1 / PARETO_SHAPE) for step in steps]
    match distribution:
        case "normal":
            values = normal
        case "pareto":
            values = pareto
        case "paretonormal":
            pareto = _standardized(pareto)
            values = [PARETO_PART * heavy + (1 - PARETO_PART) * n for heavy, n in zip(pareto, normal, strict=True)]
        case _:
            raise ValueError(f"distribution {distribution} has no table")
    for _ in range(CUTTING_ROUNDS):
        values = [max(-MAX_JITTER_DEVIATIONS, min(MAX_JITTER_DEVIATIONS, value)) for value in _standardized(values)]
    return tuple(round(value * TABLE_SCALE) for value in values)


def _standardized(values: list[float]) -> list[float]:
    mean = statistics.fmean(values)
    deviation = statistics.pstdev(values, mean)
    return [(value - mean) / deviation for value in values]
