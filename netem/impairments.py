"""Impairments of a path: delay, jitter, loss and reordering, as scenarios and the helper's clients write them.

`kernel.netem_qdisc` encodes them for the kernel's netem; `cluster.simulated.tcp_model` models them in a simulation.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.settings import Settings
from netem.wire import FRAME_BYTES

Percent = Annotated[float, Field(ge=0, le=100)]
Distribution = Literal["uniform", "normal", "pareto", "paretonormal"]

MAX_DELAY_MS = 1000.0
MAX_LIMIT_PACKETS = 1_000_000
MAX_DISTINCT_LINKS = 64  # keeps a request with all of them below the helper's size limit

# The queue of a netem holds the packets in flight. It must not overflow at any rate up to this one.
LIMIT_RATE_MBPS = 1000.0
LIMIT_MARGIN_PACKETS = 1000

# The kernel's delay tables hold 16-bit entries in units of 1/8192 standard deviation, so tails end at four deviations.
MAX_JITTER_DEVIATIONS = 32767 / 8192


class Loss(Settings):
    """Independent random loss (`percent`), or bursts: the Gilbert-Elliott model, with transitions `p` and `r`."""

    percent: Percent | None = Field(default=None, description="of packets, lost independently")
    correlation: Percent = Field(default=0.0, description="between successive packets")
    p: Percent | None = Field(default=None, description="Gilbert-Elliott: probability of good to bad, per packet")
    r: Percent | None = Field(default=None, description="probability of bad to good, per packet")
    loss_bad: Percent = Field(default=100.0, description="loss in the bad state")
    loss_good: Percent = Field(default=0.0, description="loss in the good state")

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
            raise ValueError("correlation goes with percent; p and r define bursts of their own")
        return self


class Reorder(Settings):
    """Packets sent without delay, which overtake delayed ones."""

    percent: Percent = Field(description="of packets, sent without delay")
    correlation: Percent = Field(default=0.0, description="between successive packets")

    @model_validator(mode="after")
    def _base(self) -> Self:
        if self.correlation and not self.percent:
            raise ValueError("correlation without percent: there is no reordering to correlate")
        return self


class Impairment(Settings):
    """The impairments of one direction of a path; the defaults impair nothing."""

    delay_ms: float = Field(default=0.0, ge=0, le=MAX_DELAY_MS, description="of every packet, one way")
    jitter_ms: float = Field(default=0.0, ge=0, le=MAX_DELAY_MS, description="uniform: maximum; else std deviation")
    correlation: Percent = Field(default=0.0, description="of the jitter of successive packets")
    distribution: Distribution = Field(default="uniform", description="of the jitter")
    loss: Loss | None = Field(default=None, description="packets that are lost; default: none")
    reorder: Reorder | None = Field(default=None, description="packets that overtake others; default: none")
    limit_packets: int | None = Field(
        default=None, ge=1, le=MAX_LIMIT_PACKETS, description="in flight at once; default: enough for the delay"
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
            raise ValueError("limit_packets without delay_ms: no packet is ever in flight")
        return self

    @property
    def active(self) -> bool:
        """Whether packets are affected at all."""
        return bool(self.delay_ms or self.loss)

    @property
    def delay_range_ms(self) -> tuple[float, float]:
        """The minimum and the maximum delay of a packet."""
        reach_ms = self.jitter_ms * (1 if self.distribution == "uniform" else MAX_JITTER_DEVIATIONS)
        least_ms = 0.0 if self.reorder else max(0.0, self.delay_ms - reach_ms)
        return least_ms, self.delay_ms + reach_ms

    def queue_packets(self, rate_mbps: float) -> int:
        """`limit_packets`, or enough full frames for the longest delay at `rate_mbps` or 1 Gbit/s, and a margin."""
        if self.limit_packets:
            return self.limit_packets
        frames_per_ms = max(rate_mbps, LIMIT_RATE_MBPS) * 1e3 / 8 / FRAME_BYTES
        return round(frames_per_ms * self.delay_range_ms[1]) + LIMIT_MARGIN_PACKETS


class LinkImpairments(Settings):
    """Both directions of a path: `up` from the agents to the cloud, `down` from the cloud to the agents."""

    up: Impairment = Field(default=Impairment(), description="from the agents to the cloud")
    down: Impairment = Field(default=Impairment(), description="from the cloud to the agents")

    @property
    def active(self) -> bool:
        """Whether packets are affected in any direction."""
        return self.up.active or self.down.active


UNIMPAIRED = LinkImpairments()


class Impairments(Settings):
    """The impairments of all paths of a link: shared ones, and each agent's own as an index into the distinct ones."""

    shared: LinkImpairments = UNIMPAIRED
    links: list[LinkImpairments] = Field(default=[], max_length=MAX_DISTINCT_LINKS)
    link_of: list[Annotated[int, Field(ge=0, lt=MAX_DISTINCT_LINKS)]] = Field(default=[])
    """For each agent, its index in `links`; empty if no agent has impairments of its own."""

    @model_validator(mode="after")
    def _indices(self) -> Self:
        if any(index >= len(self.links) for index in self.link_of):
            raise ValueError(f"link_of: an index beyond the {len(self.links)} links")
        return self

    @classmethod
    def of_groups(cls, shared: LinkImpairments, groups: Iterable[tuple[int, LinkImpairments]]) -> Self:
        """From groups of agents, each (count, impairments). Raises ValueError for too many distinct impairments."""
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
        """Whether any path is impaired."""
        return self.shared.active or any(link.active for link in self.links)

    def of(self, agent: int) -> LinkImpairments:
        """An agent's own impairments."""
        return self.links[self.link_of[agent]] if self.link_of else UNIMPAIRED

    def caveats(self) -> list[str]:
        """Texts for users about settings that the kernel implements differently."""
        ways = [way for link in (self.shared, *self.links) for way in (link.up, link.down)]
        found = []
        if any(way.correlation for way in ways):
            found.append("the kernel's netem accepts a correlation of jitter, but draws every delay independently")
        if any((way.loss and way.loss.correlation) or (way.reorder and way.reorder.correlation) for way in ways):
            found.append(
                "with a correlation, the kernel's netem loses and reorders fewer packets than `percent` says; for "
                "bursts with a known loss rate, set p and r"
            )
        return found

    def touch(self, agent: int) -> bool:
        """Whether an agent's packets are affected, by shared impairments or its own."""
        return self.shared.active or self.of(agent).active


NO_IMPAIRMENTS = Impairments()
