"""What netem makes of the settings, measured on the project's own kernel link: `python -m tests.netem.uml.checks OUT`.

For a kernel that has netem, in a single-threaded process of root's: `test_uml.py` boots one. Every check writes a line
of JSON to OUT: its name, what it measured, and what was wrong (empty if nothing was).
"""

import asyncio
import contextlib
import itertools
import json
import math
import select
import socket
import statistics
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from netem.bench.plan import delay_rows
from netem.checks.verify import LinkDeviates, verify_link
from netem.helper.session import LinkSession
from netem.impairments import Impairment, Impairments, LinkImpairments, Loss, Reorder
from netem.kernel.kernel_link import KernelLink
from netem.kernel.netem_qdisc import TABLE_SCALE, delay_table
from netem.kernel.topology import CLOUD_IP, agent_ip
from netem.wire import FRAME_BYTES, SEGMENT_PAYLOAD_BYTES

SO_RCVBUFFORCE = 33  # asm-generic/socket.h
FAST_MBPS = 1000.0
STAMP = struct.Struct("=Id")  # number, time sent
# A right result falls outside of 3.9 standard errors once in ten thousand times.
STANDARD_ERRORS = 3.9
TRANSFERS = tuple((rtt_ms, loss) for loss in (0, 1) for rtt_ms in (0, 20, 80))
TRANSFER_BYTES = 500_000
TRANSFER_MBPS = 8.0
TRIES = 3  # on a busy machine anything can be late
CHECKS: dict[str, Callable[[], dict[str, Any]]] = {}


def check(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Register a check. It returns what it measured, and raises AssertionError for what is wrong."""
    CHECKS[function.__name__] = function
    return function


def require(true: bool, what: str) -> None:
    if not true:
        raise AssertionError(what)


def near(measured: float, wanted: float, within: float, what: str) -> None:
    require(abs(measured - wanted) <= within, f"{what}: {measured:.4f}, wanted {wanted:.4f} +- {within:.4f}")


def delay_error(delay_ms: float) -> float:
    """How far from what was set a delay may be, ms."""
    return 0.5 + 0.01 * delay_ms


def delayed(measured_ms: float, delay_ms: float, noise_ms: float, what: str) -> None:
    """What the machine adds to a round trip without any delay isn't netem's doing: 0.1 ms, or 0.7 if it is busy."""
    least_ms, most_ms = delay_ms - delay_error(delay_ms), delay_ms + delay_error(delay_ms) + noise_ms
    require(least_ms <= measured_ms <= most_ms, f"{what}: {measured_ms:.3f} ms, wanted {least_ms:g} to {most_ms:.3f}")


def binomial(percent: float, count: int, inflation: float = 1.0) -> float:
    """How far from `percent` a share of `count` may be; `inflation` of the variance if they aren't independent."""
    share = percent / 100
    return STANDARD_ERRORS * 100 * math.sqrt(share * (1 - share) * inflation / count) + 1e-9


@contextlib.contextmanager
def built(
    own: LinkImpairments | None = None, shared: LinkImpairments | None = None, **rates: float
) -> Iterator[KernelLink]:
    """A link of two agents. Agent 0 has the impairments, agent 1 only the shared ones."""
    impairments = Impairments.of_groups(
        shared or LinkImpairments(), [(1, own or LinkImpairments()), (1, LinkImpairments())]
    )
    rates = {"channel_mbps": FAST_MBPS, "grant_mbps": FAST_MBPS} | rates
    link = KernelLink(agents=2, workers=1, impairments=impairments, **rates)
    try:
        yield link
    finally:
        link.close()


def up(**settings: Any) -> LinkImpairments:
    return LinkImpairments(up=Impairment(**settings))


def down(**settings: Any) -> LinkImpairments:
    return LinkImpairments(down=Impairment(**settings))


@contextlib.contextmanager
def connection(link: KernelLink, agent: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(the agent's end, the worker's end), both non-blocking."""
    with link.listen(0) as listener, link.connect(agent, 0) as near_end:
        listener.settimeout(30)
        far_end, _ = listener.accept()
        with far_end:
            far_end.setblocking(False)
            select.select([], [near_end], [], 30)
            yield near_end, far_end


def round_trips_ms(link: KernelLink, agent: int, count: int) -> list[float]:
    """Of single bytes on a warm TCP connection."""
    times_ms = []
    with connection(link, agent) as (near_end, far_end):
        for _ in range(count + 3):
            started_s = time.monotonic()
            for sender, receiver in ((near_end, far_end), (far_end, near_end)):
                sender.send(b"x")
                require(bool(select.select([receiver], [], [], 30)[0]), "a byte was lost for 30 s")
                receiver.recv(1)
            times_ms.append((time.monotonic() - started_s) * 1e3)
    return times_ms[3:]


def datagrams(
    link: KernelLink, count: int, pause_s: float = 0.0, *, upward: bool = True, quiet_s: float = 0.3
) -> list[float]:
    """Agent 0's delays (ms) of datagrams by number; NaN for those not there when `quiet_s` has passed without any.

    They are sent `pause_s` apart, or as fast as they can be read.
    """
    ends = []
    for namespace, address in ((link.topology.agents[0].namespace, agent_ip(0)), (link.topology.cloud, CLOUD_IP)):
        with namespace.entered():
            end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        end.bind((address, 9000))
        ends.append(end)
    sender, receiver = ends if upward else ends[::-1]
    sender.connect(receiver.getsockname())
    delays_ms = [math.nan] * count

    def read_until(end_s: float) -> bool:
        found = False
        while select.select([receiver], [], [], max(0.0, end_s - time.monotonic()))[0]:
            number, sent_s = STAMP.unpack(receiver.recv(STAMP.size))
            delays_ms[number] = (time.monotonic() - sent_s) * 1e3
            found = True
        return found

    due_s = time.monotonic()
    for number in range(count):
        sender.send(STAMP.pack(number, time.monotonic()))
        due_s += pause_s
        if pause_s or number % 20 == 19:
            read_until(due_s)
    while read_until(time.monotonic() + quiet_s):
        pass
    sender.close()
    receiver.close()
    return delays_ms


def lost(delays_ms: list[float]) -> list[bool]:
    return [math.isnan(delay) for delay in delays_ms]


def arrived(delays_ms: list[float]) -> list[float]:
    return [delay for delay in delays_ms if not math.isnan(delay)]


def steady_mbps(link: KernelLink, agent: int, seconds: float, last_s: float) -> float:
    """The rate on the wire at which a bulk transfer arrives in its last part."""
    payload = bytes(1 << 16)
    received = 0
    with connection(link, agent) as (near_end, far_end):
        begin_s = time.monotonic()
        marks: list[tuple[float, int]] = []
        while (now_s := time.monotonic()) < begin_s + seconds:
            readable, writable, _ = select.select([far_end], [near_end], [], 0.1)
            if writable:
                with contextlib.suppress(BlockingIOError):
                    near_end.send(payload)
            if readable:
                received += len(far_end.recv(1 << 20))
                if now_s >= begin_s + seconds - last_s:
                    marks.append((time.monotonic(), received))
    (from_s, before), (until_s, after) = marks[0], marks[-1]
    return (after - before) * 8 / 1e6 / (until_s - from_s) * FRAME_BYTES / SEGMENT_PAYLOAD_BYTES


@check
def clock_noise() -> dict[str, Any]:
    """How exact this kernel's clocks are: without any impairment, and asked for sleeps of 20 ms."""
    with built() as link:
        times_ms = sorted(round_trips_ms(link, 0, 200))
    sleeps_ms = []
    for _ in range(50):
        began_s = time.monotonic()
        time.sleep(0.02)
        sleeps_ms.append((time.monotonic() - began_s) * 1e3 - 20)
    return {
        "round_trip_ms": statistics.median(times_ms),
        "round_trip_p95_ms": times_ms[190],
        "sleep_late_ms": statistics.median(sleeps_ms),
    }


@check
def delay() -> dict[str, Any]:
    """In each of the four places, and only in its own direction; and all at once."""
    places = {
        "own up": (up(delay_ms=20), None),
        "own down": (down(delay_ms=20), None),
        "shared up": (None, up(delay_ms=20)),
        "shared down": (None, down(delay_ms=20)),
    }
    with built() as link:
        noise_ms = statistics.median(round_trips_ms(link, 0, 50))
    measured = {"unimpaired": noise_ms}
    for place, (own, shared) in places.items():
        with built(own, shared) as link:
            round_trip_ms = statistics.median(round_trips_ms(link, 0, 15))
            other_ms = statistics.median(round_trips_ms(link, 1, 7))
            upward_ms = statistics.median(datagrams(link, 15, 0.003))
            downward_ms = statistics.median(datagrams(link, 15, 0.003, upward=False))
        measured[place] = round_trip_ms
        delayed(round_trip_ms, 20, noise_ms, f"{place}: round trip")
        delayed(other_ms, 20 if shared else 0, noise_ms, f"{place}: the other agent's round trip")
        delayed(upward_ms, 20 if "up" in place else 0, noise_ms, f"{place}: way up")
        delayed(downward_ms, 20 if "down" in place else 0, noise_ms, f"{place}: way down")
    own = LinkImpairments(up=Impairment(delay_ms=5), down=Impairment(delay_ms=10))
    shared = LinkImpairments(up=Impairment(delay_ms=20), down=Impairment(delay_ms=40))
    for name, delay_ms, links in (
        ("all four", 75, (own, shared)),
        ("0.5 ms", 0.5, (up(delay_ms=0.5), None)),
        ("2 ms", 2, (up(delay_ms=2), None)),
        ("100 ms", 100, (up(delay_ms=100), None)),
        ("400 ms", 400, (up(delay_ms=400), None)),
    ):
        with built(*links) as link:
            measured[name] = statistics.median(round_trips_ms(link, 0, 5))
        delayed(measured[name], delay_ms, noise_ms, f"{name}: round trip")
    return measured


@check
def jitter() -> dict[str, Any]:
    """Mean, deviation and quantiles of every distribution."""
    count, mean_ms, jitter_ms = 1500, 50.0, 10.0
    measured = {}
    for distribution in ("uniform", "normal", "pareto", "paretonormal"):
        with built(up(delay_ms=mean_ms, jitter_ms=jitter_ms, distribution=distribution)) as link:
            delays_ms = sorted(datagrams(link, count, 0.001))
        if distribution == "uniform":
            ideal = [mean_ms - jitter_ms + 2 * jitter_ms * (n + 0.5) / count for n in range(count)]
        else:
            table = delay_table(distribution)  # type: ignore[arg-type]
            ideal = [
                mean_ms + jitter_ms * table[int((n + 0.5) / count * len(table))] / TABLE_SCALE for n in range(count)
            ]
        deviation_ms, ideal_ms = statistics.pstdev(delays_ms), statistics.pstdev(ideal)
        error_ms = STANDARD_ERRORS * ideal_ms / math.sqrt(count)
        measured[distribution] = {"mean_ms": statistics.fmean(delays_ms), "deviation_ms": deviation_ms}
        near(statistics.fmean(delays_ms), mean_ms, error_ms + delay_error(mean_ms), f"{distribution}: mean, ms")
        near(deviation_ms, ideal_ms, 0.15 * ideal_ms, f"{distribution}: standard deviation, ms")
        for percent in (10, 50, 90):
            at = count * percent // 100
            near(delays_ms[at], ideal[at], 0.15 * ideal_ms + delay_error(mean_ms), f"{distribution}: p{percent}, ms")
    return measured


@check
def jitter_correlation() -> dict[str, Any]:
    """Has no effect, as `Impairments.caveats` says: the kernel takes the correlated number modulo the width."""
    count = 1000
    with built(up(delay_ms=50, jitter_ms=10, correlation=75)) as link:
        delays_ms = datagrams(link, count, 0.001)
    correlation = statistics.correlation(delays_ms[:-1], delays_ms[1:])
    near(correlation, 0, STANDARD_ERRORS / math.sqrt(count), "correlation of one delay with the last")
    return {"correlation": correlation, "deviation_ms": statistics.pstdev(delays_ms)}


@check
def random_loss() -> dict[str, Any]:
    count = 8000
    measured: dict[str, Any] = {}
    for place, own, shared, upward in (
        ("own up", up(loss=Loss(percent=1)), None, True),
        ("own down", down(loss=Loss(percent=10)), None, False),
        ("shared up", None, up(loss=Loss(percent=5)), True),
        ("shared down", None, down(loss=Loss(percent=0.5)), False),
    ):
        wanted = next(i.loss.percent for i in (*_directions(own), *_directions(shared)) if i.loss)
        assert wanted is not None
        with built(own, shared) as link:
            percent = 100 * statistics.fmean(lost(datagrams(link, count, upward=upward)))
            back = 100 * statistics.fmean(lost(datagrams(link, 1000, upward=not upward)))
        measured[place] = {"asked": wanted, "lost": percent}
        near(percent, wanted, binomial(wanted, count), f"{place}: lost, %")
        near(back, 0, 0, f"{place}: lost in the other direction, %")
    return measured


def _directions(link: LinkImpairments | None) -> list[Impairment]:
    return [link.up, link.down] if link else []


@check
def correlated_loss() -> dict[str, Any]:
    """The kernel averages chances with the last one: bursts, and fewer than asked, as `Impairments.caveats` says."""
    count = 20_000
    with built(up(loss=Loss(percent=10, correlation=25))) as link:
        gone = lost(datagrams(link, count))
    share = statistics.fmean(gone)
    after_loss = statistics.fmean(after for before, after in itertools.pairwise(gone) if before)
    require(0.01 < share < 0.09, f"lost {share:.4f}")
    require(after_loss > 2 * share, f"lost {share:.4f}, but after a loss {after_loss:.4f}")
    return {"asked": 10, "lost": 100 * share, "after_a_loss": 100 * after_loss}


@check
def gilbert_elliott() -> dict[str, Any]:
    """The share of time in the bad state is p / (p + r), a burst of it 1 / r packets long."""
    count = 15_000
    measured: dict[str, Any] = {}
    for p, r, bad, good in ((1, 25, 100, 0), (5, 20, 60, 2)):
        with built(up(loss=Loss(p=p, r=r, loss_bad=bad, loss_good=good))) as link:
            gone = lost(datagrams(link, count))
        percent = 100 * statistics.fmean(gone)
        in_bad = p / (p + r)
        wanted = in_bad * bad + (1 - in_bad) * good
        # Losses are correlated by what is left of the state: 1 - p - r for each packet.
        share, kept = wanted / 100, 1 - (p + r) / 100
        state = in_bad * (1 - in_bad) * ((bad - good) / 100) ** 2 / (share * (1 - share))
        inflation = 1 + 2 * state * kept / (1 - kept)
        near(percent, wanted, binomial(wanted, count, inflation), f"p {p} r {r}: lost, %")
        bursts = "".join("x" if one else " " for one in gone).split()
        length = statistics.fmean(map(len, bursts))
        measured[f"p {p} r {r} bad {bad} good {good}"] = {"asked": wanted, "lost": percent, "burst": length}
        if (bad, good) == (100, 0):
            deviation = math.sqrt(1 - r / 100) / (r / 100)
            near(length, 100 / r, STANDARD_ERRORS * deviation / math.sqrt(len(bursts)), "length of bursts, packets")
    return measured


@check
def reordering() -> dict[str, Any]:
    count = 2000
    with built(up(delay_ms=10, reorder=Reorder(percent=25))) as link:
        delays_ms = datagrams(link, count, 0.001)
    percent = 100 * statistics.fmean(delay < 5 for delay in delays_ms)
    near(percent, 25, binomial(25, count), "overtook, %")
    late_ms = statistics.median(delay for delay in delays_ms if delay >= 5)
    near(late_ms, 10, delay_error(10), "the others' delay, ms")
    return {"asked": 25, "overtook": percent, "others_ms": late_ms}


@check
def limit() -> dict[str, Any]:
    """What doesn't fit is lost; by default everything fits."""
    with built(up(delay_ms=300, limit_packets=50)) as link:
        few = len(arrived(datagrams(link, 200, quiet_s=0.5)))
    near(few, 50, 1, "arrived of 200 at once, with a limit of 50")
    with built(up(delay_ms=1000)) as link:
        all_of_them = len(arrived(datagrams(link, 3000, quiet_s=1.2)))
    require(all_of_them == 3000, f"{all_of_them} of 3000 arrived without a limit of their own")
    return {"of_200_with_limit_50": few, "of_3000_on_their_way": all_of_them}


@check
def rates_stay_exact() -> dict[str, Any]:
    """A bulk transfer on a delayed path settles at its grant, and the kernel's window fills a long path."""
    measured = {}
    grant_mbps = 8.0
    short = LinkImpairments(up=Impairment(delay_ms=10), down=Impairment(delay_ms=10))
    long = LinkImpairments(up=Impairment(delay_ms=100), down=Impairment(delay_ms=100))
    for name, own, shared, seconds in (
        ("unimpaired", None, None, 3.0),
        ("own 10 + 10 ms", short, None, 3.0),
        ("shared 10 + 10 ms", None, short, 3.0),
        ("own 100 + 100 ms", long, None, 6.0),  # 200 KB on their way: more than the send buffer of an unimpaired path
    ):
        with built(own, shared, grant_mbps=grant_mbps, channel_mbps=2 * grant_mbps) as link:
            measured[name] = steady_mbps(link, 0, seconds, 1.5)
            _, direct = link.counters()
        # This kernel's timers are late by 0.2 ms, so the bucket itself is slow by some percent.
        wanted_mbps = measured["unimpaired"]
        near(measured[name], wanted_mbps, 0.04 * wanted_mbps, f"{name}: Mbit/s")
        require(direct == 0, "nothing gets past the shaping")
    return measured


@check
def lossy_transfer_arrives_whole() -> dict[str, Any]:
    """TCP makes up for loss and reordering in both directions."""
    size = 1 << 20
    payload = bytes(n * 7 % 251 for n in range(1021)) * (size // 1021 + 1)
    way = Impairment(delay_ms=5, jitter_ms=2, loss=Loss(percent=1), reorder=Reorder(percent=2))
    with built(LinkImpairments(up=way, down=way), grant_mbps=20.0) as link, connection(link, 0) as (near_end, far_end):
        sent, received = 0, bytearray()
        began_s = time.monotonic()
        while len(received) < size:
            require(time.monotonic() < began_s + 60, f"{len(received)} of {size} bytes after a minute")
            readable, writable, _ = select.select([far_end], [near_end] if sent < size else [], [], 1)
            if writable:
                with contextlib.suppress(BlockingIOError):
                    sent += near_end.send(payload[sent : min(size, sent + 65536)])
            if readable:
                received += far_end.recv(1 << 18)
        took_s = time.monotonic() - began_s
    require(bytes(received) == payload[:size], "the bytes are others")
    return {"took_s": took_s}


@check
def transfers() -> dict[str, Any]:
    """Milliseconds of whole transfers, the first of a connection and later ones: what a simulation has to get right."""
    measured = {}
    for rtt_ms, loss in TRANSFERS:
        way = Impairment(delay_ms=rtt_ms / 2, loss=Loss(percent=loss) if loss else None)
        own = LinkImpairments(up=way, down=Impairment(delay_ms=rtt_ms / 2))
        with built(own, grant_mbps=TRANSFER_MBPS) as link, connection(link, 0) as ends:
            took_ms = [_transfer_ms(*ends) for _ in range(7 if loss else 3)]
        measured[f"{rtt_ms} ms, {loss} %"] = {"first_ms": took_ms[0], "later_ms": statistics.fmean(took_ms[1:])}
    return measured


def _transfer_ms(near_end: socket.socket, far_end: socket.socket) -> float:
    """From the first byte handed over to the last one there."""
    sent = received = 0
    payload = bytes(TRANSFER_BYTES)
    began_s = time.monotonic()
    while received < TRANSFER_BYTES:
        require(time.monotonic() < began_s + 60, f"{received} bytes after a minute")
        readable, writable, _ = select.select([far_end], [near_end] if sent < TRANSFER_BYTES else [], [], 1)
        if writable:
            with contextlib.suppress(BlockingIOError):
                sent += near_end.send(payload[sent : sent + 16384])
        if readable:
            received += len(far_end.recv(1 << 18))
    return (time.monotonic() - began_s) * 1e3


@check
def benched_delays() -> dict[str, Any]:
    """What `scout bench links` says of delays here is what `delay` finds."""
    rows = delay_rows("root")
    require(not [row for row in rows if "skipped" in row] and len(rows) > 4, f"{rows}")
    for row in rows:
        near(row["error_ms"], 0, delay_error(row["asked_ms"]) + 0.3, f"{row['asked_ms']:g} ms: error, ms")
    return {f"{row['asked_ms']:g} ms": row["round_trip_ms"] for row in rows}


@check
def self_check() -> dict[str, Any]:
    """What runs do first finds rates and round trips as they were asked for, and notices if they aren't."""
    delayed = LinkImpairments(up=Impairment(delay_ms=15), down=Impairment(delay_ms=10))
    jittery = LinkImpairments(up=Impairment(delay_ms=30, jitter_ms=5, loss=Loss(percent=1)))
    shared = up(delay_ms=5)
    groups = [(1, delayed), (1, jittery), (1, LinkImpairments())]
    impairments = Impairments.of_groups(shared, groups)
    settings: dict[str, Any] = {"agents": 3, "workers": 1, "channel_mbps": 30.0, "grant_mbps": 10.0}
    with LinkSession.start("auto", privilege="root", impairments=impairments, **settings) as session:
        require(session.kind == "kernel", "auto is the kernel's link")
        found = asyncio.run(verify_link(session, 3, 30.0, 10.0, impairments))
        unlike = Impairments.of_groups(shared, [groups[2], groups[1], groups[0]])
        try:
            asyncio.run(verify_link(session, 3, 30.0, 10.0, unlike))
        except LinkDeviates as error:
            noticed = str(error)
        else:
            raise AssertionError("other delays than those asked for were not noticed")
    require([each.asked_mbps for each in found.agents] == [4.0, None, 4.0], "rates that can be told")
    return {"agents": [asdict(each) for each in found.agents], "noticed": noticed}


@check
def only_impaired_ends_have_the_kernels_own_tcp() -> dict[str, Any]:
    def here() -> list[str]:
        names = ("tcp_early_retrans", "tcp_limit_output_bytes")
        return [Path("/proc/sys/net/ipv4", name).read_text().strip() for name in names]

    def settings(link: KernelLink) -> list[list[str]]:
        found = []
        for namespace in (link.topology.agents[0].namespace, link.topology.agents[1].namespace, link.topology.cloud):
            with namespace.entered():
                found.append(here())
        return found

    own, ours = here(), ["0", "16384"]
    with built() as link:
        require(settings(link) == [ours, ours, ours], "unimpaired")
    with built(up(delay_ms=1)) as link:
        require(settings(link) == [own, ours, own], "agent 0 impaired")
    with built(None, down(loss=Loss(percent=1))) as link:
        require(settings(link) == [own, own, own], "shared")
    return {"kernels_own": own}


def main() -> None:
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        for name, function in CHECKS.items():
            began_s = time.monotonic()
            for _ in range(TRIES):
                measured, wrong = {}, ""
                try:
                    measured = function()
                    break
                except AssertionError as error:
                    wrong = str(error)
                except Exception:
                    wrong = traceback.format_exc()
                    break
            took_s = round(time.monotonic() - began_s, 1)
            out.write(json.dumps({"name": name, "measured": measured, "wrong": wrong, "took_s": took_s}) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
