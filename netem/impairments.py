"""What a path does to packets besides carrying them: delay, jitter, loss and reordering, by the kernel's netem.

The models here are what scenarios write and what travels to the helper; `netem_options` turns one into the netlink
attributes that sch_netem reads (linux/pkt_sched.h). pyroute2 can't: it has neither Gilbert-Elliott loss nor tables of
delays.
"""

import functools
import statistics
import struct
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from netem.wire import FRAME_BYTES

Percent = Annotated[float, Field(ge=0, le=100)]
Distribution = Literal["uniform", "normal", "pareto", "paretonormal"]

MAX_DELAY_MS = 1000.0
MAX_LIMIT_PACKETS = 1_000_000
MAX_DISTINCT_LINKS = 64  # so that a request with all of them stays below what the helper reads

# A queue that holds what is on its way must not overflow at any rate that links here are exact at.
LIMIT_RATE_MBPS = 1000.0
LIMIT_MARGIN_PACKETS = 1000

TABLE_ENTRIES = 4096
TABLE_SCALE = 8192  # NETEM_DIST_SCALE: this much of a table is one standard deviation
TABLE_MOST = 32767 / TABLE_SCALE  # entries are 16 bits: four standard deviations
PARETO_SHAPE = 3.0  # iproute2's, as is the mixture of paretonormal: three parts Pareto, one part normal
PARETO_PART = 0.75
CUTS = 30  # cutting a tail makes what is left narrower, widening that makes the tail longer again: settles at 1e-6


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Loss(_Model):
    """Packets lost at random (`percent`), or in bursts: two states, entered by chance with every packet (`p`, `r`)."""

    percent: Percent | None = Field(default=None, description="of packets, each by itself")
    correlation: Percent = Field(default=0.0, description="of one packet's chance with the last one's")
    p: Percent | None = Field(default=None, description="Gilbert-Elliott: chance to turn bad, with every packet")
    r: Percent | None = Field(default=None, description="chance to turn good again")
    loss_bad: Percent = Field(default=100.0, description="while bad")
    loss_good: Percent = Field(default=0.0, description="while good")

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        bursts = {"p": None, "r": None, "loss_bad": 100.0, "loss_good": 0.0}
        in_states = [name for name, unset in bursts.items() if getattr(self, name) != unset]
        if self.percent is not None:
            if in_states:
                raise ValueError(f"percent or {', '.join(in_states)}, not both: loss has one model")
            if self.correlation and not self.percent:
                raise ValueError("correlation without percent: there is no loss to correlate")
        elif self.p is None or self.r is None:
            raise ValueError("needs percent, or p and r (Gilbert-Elliott)")
        elif self.correlation:
            raise ValueError("correlation goes with percent; p and r have bursts of their own")
        return self


class Reorder(_Model):
    """Packets that overtake: they are not delayed at all."""

    percent: Percent
    correlation: Percent = Field(default=0.0, description="of one packet's chance with the last one's")

    @model_validator(mode="after")
    def _base(self) -> Self:
        if self.correlation and not self.percent:
            raise ValueError("correlation without percent: there is no reordering to correlate")
        return self


class Impairment(_Model):
    """One direction of a path. Without any setting nothing happens to packets."""

    delay_ms: float = Field(default=0.0, ge=0, le=MAX_DELAY_MS)
    jitter_ms: float = Field(default=0.0, ge=0, le=MAX_DELAY_MS, description="uniform: at most; else 1 standard dev.")
    correlation: Percent = Field(default=0.0, description="of one packet's jitter with the last one's")
    distribution: Distribution = Field(default="uniform", description="of the jitter")
    loss: Loss | None = None
    reorder: Reorder | None = None
    limit_packets: int | None = Field(
        default=None, ge=1, le=MAX_LIMIT_PACKETS, description="on their way at once; default: enough for the delay"
    )

    @model_validator(mode="after")
    def _bases(self) -> Self:
        if self.jitter_ms > self.delay_ms:
            raise ValueError(
                f"jitter_ms {self.jitter_ms:g} without a delay_ms as long: no packet can arrive before it was sent"
            )
        if self.correlation and not self.jitter_ms:
            raise ValueError("correlation without jitter_ms: there is nothing to correlate")
        if self.distribution != "uniform" and not self.jitter_ms:
            raise ValueError(f"distribution {self.distribution} without jitter_ms: there is nothing to distribute")
        if self.reorder and not self.delay_ms:
            raise ValueError("reorder without delay_ms: packets overtake others that are delayed")
        if self.limit_packets and not self.delay_ms:
            raise ValueError("limit_packets without delay_ms: nothing is ever on its way")
        return self

    @property
    def active(self) -> bool:
        """Whether packets notice."""
        return bool(self.delay_ms or self.loss)

    @property
    def delay_range_ms(self) -> tuple[float, float]:
        """The shortest and the longest delay that packets can have."""
        reach_ms = self.jitter_ms * (1 if self.distribution == "uniform" else TABLE_MOST)
        least_ms = 0.0 if self.reorder else max(0.0, self.delay_ms - reach_ms)
        return least_ms, self.delay_ms + reach_ms

    def queue_packets(self, rate_mbps: float) -> int:
        """`limit_packets`, or enough full frames for the longest delay at `rate_mbps` or 1 Gbit/s, and a margin."""
        if self.limit_packets:
            return self.limit_packets
        frames_per_ms = max(rate_mbps, LIMIT_RATE_MBPS) * 1e3 / 8 / FRAME_BYTES
        return round(frames_per_ms * self.delay_range_ms[1]) + LIMIT_MARGIN_PACKETS


class LinkImpairments(_Model):
    """Both directions of a path: `up` from the agents to the cloud, `down` from the cloud to the agents."""

    up: Impairment = Impairment()
    down: Impairment = Impairment()

    @property
    def active(self) -> bool:
        """Whether packets notice in any direction."""
        return self.up.active or self.down.active


UNIMPAIRED = LinkImpairments()


class Impairments(_Model):
    """Of all paths of a link: what agents share, and each agent's own, told by an index into the distinct ones."""

    shared: LinkImpairments = UNIMPAIRED
    links: list[LinkImpairments] = Field(default=[], max_length=MAX_DISTINCT_LINKS)
    link_of: list[Annotated[int, Field(ge=0, lt=MAX_DISTINCT_LINKS)]] = []
    """For every agent its index in `links`; empty if no agent has any."""

    @model_validator(mode="after")
    def _indices(self) -> Self:
        if any(index >= len(self.links) for index in self.link_of):
            raise ValueError(f"link_of: an index beyond the {len(self.links)} links")
        return self

    @classmethod
    def of_groups(cls, shared: LinkImpairments, groups: Iterable[tuple[int, LinkImpairments]]) -> Self:
        """From (number of agents, their own), in the agents' order. Raises ValueError: too many distinct ones."""
        links: list[LinkImpairments] = []
        link_of: list[int] = []
        for count, link in groups:
            if link not in links:
                links.append(link)
            link_of += [links.index(link)] * count
        if not any(link.active for link in links):
            return cls(shared=shared)
        return cls(shared=shared, links=links, link_of=link_of)

    @property
    def active(self) -> bool:
        """Whether there is any."""
        return self.shared.active or any(link.active for link in self.links)

    def of(self, agent: int) -> LinkImpairments:
        """An agent's own."""
        return self.links[self.link_of[agent]] if self.link_of else UNIMPAIRED

    def caveats(self) -> list[str]:
        """What the kernel makes something else of than the settings say, for people."""
        ways = [way for link in (self.shared, *self.links) for way in (link.up, link.down)]
        found = []
        if any(way.correlation for way in ways):
            found.append("the kernel's netem takes a correlation of jitter, but draws every delay by itself")
        if any((way.loss and way.loss.correlation) or (way.reorder and way.reorder.correlation) for way in ways):
            found.append(
                "with a correlation, the kernel's netem loses and reorders fewer packets than `percent` says; for "
                "bursts of a known share, set p and r"
            )
        return found

    def touch(self, agent: int) -> bool:
        """Whether an agent's packets notice any, its own or shared ones."""
        return self.shared.active or self.of(agent).active


NO_IMPAIRMENTS = Impairments()

# Attributes of sch_netem and their structures: linux/pkt_sched.h.
_CORRELATIONS, _DELAY_TABLE, _REORDER, _LOSS = 1, 2, 3, 5
_GILBERT_ELLIOTT = 2  # NETEM_LOSS_GE, nested in the loss attribute
_NESTED = 1 << 15
_MAIN = struct.Struct("=IIIIII")  # tc_netem_qopt: delay (ticks), limit, loss, gap, duplicate, jitter (ticks)
_ATTRIBUTE = struct.Struct("=HH")
_TICK_NS = 64


def netem_options(impairment: Impairment, rate_mbps: float) -> bytes:
    """The content of TCA_OPTIONS for a netem that does this to packets that come at `rate_mbps` at most."""
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
        # tc_netem_gemodel: p, r, h, k1. The kernel loses a packet in the good state with chance k1, and in the bad one
        # with 1 - h: h is the chance to get through.
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
    """Quantiles at equal distances, in units of 1/8192 standard deviation; the kernel draws from them.

    Brought to mean 0 and standard deviation 1, with tails cut at four, so that `delay_ms` is the mean and `jitter_ms`
    the standard deviation of every distribution. The shapes are those of iproute2's tables.
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
            raise ValueError(f"no table for {distribution}")
    for _ in range(CUTS):
        values = [max(-TABLE_MOST, min(TABLE_MOST, value)) for value in _standardized(values)]
    return tuple(round(value * TABLE_SCALE) for value in values)


def _standardized(values: list[float]) -> list[float]:
    mean = statistics.fmean(values)
    deviation = statistics.pstdev(values, mean)
    return [(value - mean) / deviation for value in values]
