"""Delay, jitter, loss and reordering as settings: what is refused, what the kernel is told, and that lacks are said.

What the kernel makes of it is measured in `test_uml.py`.
"""

import statistics
import struct
from typing import Any

import pytest
from pydantic import ValidationError

from netem.checks.capabilities import probe
from netem.helper import protocol
from netem.helper.session import LinkSession, LinkUnavailable
from netem.impairments import (
    MAX_DISTINCT_LINKS,
    Impairment,
    Impairments,
    LinkImpairments,
    Loss,
)
from netem.kernel.netem_qdisc import delay_table, netem_options

DELAYED = Impairments(shared=LinkImpairments(up=Impairment(delay_ms=10)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jitter_ms": 5}, "jitter_ms 5 without a delay_ms as long"),
        ({"delay_ms": 5, "jitter_ms": 6}, "jitter_ms 6 without a delay_ms as long"),
        ({"delay_ms": 5, "correlation": 25}, "correlation without jitter_ms"),
        ({"delay_ms": 5, "distribution": "normal"}, "distribution normal without jitter_ms"),
        ({"reorder": {"percent": 5}}, "reorder without delay_ms"),
        ({"delay_ms": 5, "reorder": {"percent": 0, "correlation": 5}}, "correlation without percent"),
        ({"limit_packets": 100}, "limit_packets without delay_ms"),
        ({"loss": {}}, "needs percent, or p and r"),
        ({"loss": {"p": 1}}, "needs percent, or p and r"),
        ({"loss": {"loss_bad": 50}}, "needs percent, or p and r"),
        ({"loss": {"percent": 0, "correlation": 25}}, "correlation without percent"),
        ({"loss": {"percent": 1, "p": 1, "r": 30}}, "percent or p, r, not both"),
        ({"loss": {"p": 1, "r": 30, "correlation": 5}}, "correlation goes with percent"),
        ({"delay_ms": 1001}, "less than or equal to 1000"),
        ({"delay_ms": float("nan")}, "finite"),
        ({"delay_ms": -1}, "greater than or equal to 0"),
        ({"loss": {"percent": 101}}, "less than or equal to 100"),
        ({"delay_ms": 1, "limit_packets": 0}, "greater than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Impairment.model_validate(settings)


def attributes(options: bytes) -> dict[int, bytes]:
    """The netlink attributes behind the main structure."""
    found, at = {}, 24
    while at < len(options):
        length, kind = struct.unpack_from("=HH", options, at)
        found[kind] = options[at + 4 : at + length]
        at += -(-length // 4) * 4
    return found


def test_the_kernel_is_told_in_its_own_units() -> None:
    everything = Impairment(
        delay_ms=20,
        jitter_ms=5,
        correlation=25,
        distribution="pareto",
        loss=Loss(percent=1, correlation=50),
        reorder={"percent": 10, "correlation": 100},  # type: ignore[arg-type]
        limit_packets=77,
    )
    options = netem_options(everything, 50)
    most = 2**32 - 1
    # tc_netem_qopt: delay, limit, loss, gap, duplicate, jitter; a tick is 64 ns
    assert struct.unpack_from("=6I", options) == (312_500, 77, round(most / 100), 1, 0, 78_125)
    found = attributes(options)
    assert set(found) == {1, 2, 3}
    assert struct.unpack("=3I", found[1]) == (round(most / 4), round(most / 2), 0)
    assert struct.unpack("=2I", found[3]) == (round(most / 10), most)
    assert struct.unpack("=4096h", found[2]) == delay_table("pareto")


def test_gilbert_elliott_is_told_by_the_chance_to_get_through() -> None:
    bursts = Loss(p=1, r=25, loss_bad=90, loss_good=0.5)
    found = attributes(netem_options(Impairment(loss=bursts), 50))
    assert set(found) == {5 | 1 << 15}, "nested"
    length, kind, p, r, through_bad, lost_good = struct.unpack("=HH4I", found[5 | 1 << 15])
    assert (length, kind) == (20, 2)
    shares = [value / (2**32 - 1) for value in (p, r, through_bad, lost_good)]
    assert shares == pytest.approx([0.01, 0.25, 0.10, 0.005], abs=1e-9)


def test_the_queue_holds_what_is_on_its_way() -> None:
    assert Impairment(delay_ms=100).queue_packets(50) == round(1e9 / 8 / 1514 * 0.1) + 1000
    assert Impairment(delay_ms=100, limit_packets=5).queue_packets(50) == 5
    fast = Impairment(delay_ms=100, jitter_ms=50, distribution="normal").queue_packets(10_000)
    assert fast > 10e9 / 8 / 1514 * 0.3


@pytest.mark.parametrize("distribution", ["normal", "pareto", "paretonormal"])
def test_tables_have_the_mean_and_the_deviation_that_settings_name(distribution: Any) -> None:
    table = [entry / 8192 for entry in delay_table(distribution)]
    assert statistics.fmean(table) == pytest.approx(0, abs=1e-4)
    assert statistics.pstdev(table) == pytest.approx(1, abs=1e-4)
    assert table == sorted(table) and table[0] > -4 and table[-1] < 4
    assert (table[-1] + table[0] > 1) == (distribution != "normal"), "Pareto's tail is on the late side"


def test_a_request_with_all_there_may_be_fits() -> None:
    number = 12.345678901234567
    full = {
        "delay_ms": 900 + number,
        "jitter_ms": number,
        "correlation": number,
        "distribution": "paretonormal",
        "loss": {"p": number, "r": number, "loss_bad": number, "loss_good": number},
        "reorder": {"percent": number, "correlation": number},
    }
    links = [{"up": full | {"limit_packets": 999_900 + n}, "down": full} for n in range(MAX_DISTINCT_LINKS)]
    impairments = {"shared": links[0], "links": links, "link_of": [MAX_DISTINCT_LINKS - 1] * protocol.MAX_AGENTS}
    build = {"id": 0, "op": "build", "agents": 1024, "workers": 64, "channel_mbps": number, "grant_mbps": number}
    message = protocol.encode(build | {"impairments": impairments})
    assert len(message) <= protocol.MAX_REQUEST_BYTES
    parsed = protocol.parse_request(message)
    assert isinstance(parsed, protocol.Build)
    again = protocol.encode(parsed.model_dump(exclude_defaults=True))
    assert protocol.parse_request(again) == parsed and len(again) <= protocol.MAX_REQUEST_BYTES


@pytest.mark.parametrize(
    "impairments",
    [
        {"links": [{}], "link_of": [0]},
        {"links": [{}], "link_of": [0, 1]},
        {"link_of": [0, 0]},
        {"links": [{}] * (MAX_DISTINCT_LINKS + 1), "link_of": [0, 0]},
        {"links": [{}], "link_of": [0, -1]},
    ],
)
def test_indices_must_fit_agents_and_links(impairments: dict[str, Any]) -> None:
    build = {"id": 0, "op": "build", "agents": 2, "workers": 1, "channel_mbps": 1, "grant_mbps": 1}
    assert protocol.parse_request(protocol.encode(build))
    with pytest.raises(ValidationError):
        protocol.parse_request(protocol.encode(build | {"impairments": impairments}))


def test_the_paced_link_has_no_impairments() -> None:
    with pytest.raises(LinkUnavailable, match="the paced link has none"):
        LinkSession.start("paced", agents=1, workers=1, channel_mbps=1, grant_mbps=1, impairments=DELAYED)


@pytest.mark.parametrize("impaired", [DELAYED.shared, LinkImpairments(down=Impairment(loss=Loss(percent=1)))])
def test_auto_never_leaves_them_out(impaired: LinkImpairments) -> None:
    """Either there is a kernel link with them, or none; and a kernel that lacks them isn't taken for a broken one."""
    found = {capability.name: capability for capability in probe()}
    there = found["netem"].available and found["ifb"].available and found["act_mirred"].available
    own = Impairments.of_groups(LinkImpairments(), [(1, LinkImpairments()), (1, impaired)])
    for impairments in (own, Impairments(shared=impaired)):
        settings: dict[str, Any] = {"agents": 2, "workers": 1, "channel_mbps": 10, "grant_mbps": 5}
        if there:
            with LinkSession.start(**settings, impairments=impairments) as session:
                assert session.kind == "kernel"
        elif found["link"].detail.startswith("kernel"):
            with pytest.raises(LinkUnavailable, match=r"this kernel has no \w+, .* modprobe -a sch_netem"):
                LinkSession.start(**settings, impairments=impairments)
        else:
            with pytest.raises(LinkUnavailable):
                LinkSession.start(**settings, impairments=impairments)
