"""The bench's measurements, their order, and the combinations that it skips because they take too long."""

import asyncio
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from netem.bench.rig import Reception, Rig
from netem.channels.cellular import CellularChannel
from netem.checks.verify import verify_link
from netem.fairness import jain_index
from netem.helper.session import LinkKind, LinkSession, LinkUnavailable, Privilege
from netem.impairments import Impairment, Impairments, LinkImpairments
from netem.wire import FRAME_BYTES, SEGMENT_PAYLOAD_BYTES, ideal_transfer_s

Row = dict[str, Any]

SIZES_BYTES = (336, 64 * 1024, 256 * 1024, 5_000_000)
RATES_MBPS = (5.0, 50.0, 200.0)
AGENTS = (1, 4, 16, 64)

LONGEST_TRANSFER_S = 60.0
REPEATS_BUDGET_S = 5.0
PAUSE_S = 0.03
WARM_UP_BYTES = 200_000

CHANGES_MBPS = ((20.0, 100.0), (100.0, 20.0))
CHANGE_AFTER_S = 0.3
BIN_S = 0.005
BIN_TOLERANCE = 0.2  # a frame is 12 % of a bin at 20 Mbit/s

OVERCOMMITMENT = 4
SETTLE_S = 0.3

DELAYS_MS = (1.0, 5.0, 20.0, 100.0, 200.0)

REPLAY_SEED = 42
REPLAY_LEAD_S = 0.5  # at the trace's first rate, so that the window is open when the trace begins
REGRANT_S = 0.1


def bench_links(
    kind: LinkKind = "auto",
    *,
    privilege: Privilege = "auto",
    sizes_bytes: Sequence[int] = SIZES_BYTES,
    rates_mbps: Sequence[float] = RATES_MBPS,
    agents: Sequence[int] = AGENTS,
    repeats: int = 5,
    quick: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure a link of this kind; the result is ready for JSON.

    `rows` holds one dict for each combination. Its `measure` is `transfer` (n agents at once, each granted rate/n of a
    channel of `rate`), `reaction` (the time until a changed grant or channel acts), `overcommitted` (grants that add up
    to four times the channel), `replay` (a cellular trace as the channel), `regranting` (grants that change ten times a
    second) or `delay` (if the kernel has netem). Errors are relative to `wire.ideal_transfer_s` and pool agents and
    repeats. A row with `skipped` says why it wasn't measured. Times are taken at the receiver. The default takes about
    six minutes, `quick` (smaller loads, fewer repeats, fewer sizes and agents) one. Raises LinkUnavailable.
    """
    overcommitted_s, longest_s, budget_s = 4.0, LONGEST_TRANSFER_S, REPEATS_BUDGET_S
    if quick:
        sizes_bytes = [size for size in sizes_bytes if size <= 1 << 20]
        agents = [count for count in agents if count <= 16]
        repeats, overcommitted_s, longest_s, budget_s = min(repeats, 3), 1.5, 3.0, 1.0
    rows: list[Row] = []
    result: dict[str, Any] = {"kernel": platform.release(), "machine": platform.machine(), "rows": rows}
    started_s = time.monotonic()
    for count in agents:
        with (
            LinkSession.start(
                kind, agents=count, workers=1, channel_mbps=1000, grant_mbps=1000, privilege=privilege
            ) as session,
            Rig(session, count) as rig,
        ):
            result |= {"link": session.kind, "privilege": session.privilege}
            result["fallback_reason"] = session.fallback_reason
            rig.transfer(WARM_UP_BYTES)
            for rate_mbps in rates_mbps:
                for size in sizes_bytes:
                    progress(f"{count} agents, {rate_mbps:g} Mbit/s, {size} bytes")
                    rows.append(_transfer_row(rig, size, rate_mbps, repeats, longest_s, budget_s))
            if count == 1:
                progress("reaction times")
                rows.extend(_reaction_rows(rig, repeats))
                progress("replay of a trace")
                rows.append(_replay_row(rig, 5.0 if quick else 30.0))
            else:
                for rate_mbps in rates_mbps:
                    progress(f"{count} agents, overcommitted {rate_mbps:g} Mbit/s")
                    rows.append(_overcommitted_row(rig, rate_mbps, overcommitted_s))
                progress(f"{count} agents, grants changed ten times a second")
                rows.append(_regranting_row(rig, 2.0 if quick else 10.0))
    if result["link"] == "kernel":
        progress("delays")
        rows.extend(delay_rows(privilege))
    result["took_s"] = round(time.monotonic() - started_s, 1)
    return result


def _transfer_row(
    rig: Rig, payload_bytes: int, rate_mbps: float, repeats: int, longest_s: float, budget_s: float
) -> Row:
    ideal_s = ideal_transfer_s(payload_bytes, rate_mbps / rig.agents)
    row: Row = {
        "measure": "transfer",
        "payload_bytes": payload_bytes,
        "rate_mbps": rate_mbps,
        "agents": rig.agents,
        "ideal_ms": ideal_s * 1e3,
    }
    if ideal_s > longest_s:
        return row | {"skipped": f"would take {ideal_s:.0f} s, more than {longest_s:.0f} s"}
    rig.set_rates(rate_mbps, rate_mbps / rig.agents)
    repeats = max(1, min(repeats, int(budget_s / ideal_s)))
    times_s, fairness = [], []
    for _ in range(repeats):
        time.sleep(PAUSE_S)
        durations_s = rig.transfer(payload_bytes).durations_s()
        times_s += durations_s
        fairness.append(jain_index([payload_bytes / duration for duration in durations_s]))
    return row | {
        "repeats": repeats,
        "median_ms": statistics.median(times_s) * 1e3,
        "min_ms": min(times_s) * 1e3,
        "max_ms": max(times_s) * 1e3,
        "median_error": statistics.median(times_s) / ideal_s - 1,
        "min_error": min(times_s) / ideal_s - 1,
        "max_error": max(times_s) / ideal_s - 1,
        "jain": min(fairness),
    }


def _reaction_rows(rig: Rig, repeats: int) -> list[Row]:
    rows = []
    for what in ("grant", "channel"):
        for before_mbps, after_mbps in CHANGES_MBPS:
            times_ms = [_reaction_ms(rig, what, before_mbps, after_mbps) for _ in range(repeats)]
            rows.append(
                {
                    "measure": "reaction",
                    "what": what,
                    "before_mbps": before_mbps,
                    "after_mbps": after_mbps,
                    "repeats": repeats,
                    "median_ms": statistics.median(times_ms),
                    "max_ms": max(times_ms),
                }
            )
    return rows


def _reaction_ms(rig: Rig, what: str, before_mbps: float, after_mbps: float) -> float:
    """Time (ms) from the call that changes the rate to the end of the first of two successive bins at the new rate."""
    free_mbps = 2 * max(before_mbps, after_mbps)

    def set_rate(mbps: float) -> None:
        rig.set_rates(*((free_mbps, mbps) if what == "grant" else (mbps, free_mbps)))

    called_s = 0.0

    def change() -> None:
        nonlocal called_s
        called_s = time.monotonic()
        set_rate(after_mbps)

    set_rate(before_mbps)
    time.sleep(PAUSE_S)
    payload_bytes = round((before_mbps + after_mbps) * CHANGE_AFTER_S * 1e6 / 8)
    reception = rig.transfer(payload_bytes, [(CHANGE_AFTER_S, change)])
    wanted_bytes = BIN_S / ideal_transfer_s(1, after_mbps)
    bins = int((reception.ends_s[0] - called_s) / BIN_S)
    at_level = [
        abs(reception.received_bytes(called_s + index * BIN_S, called_s + (index + 1) * BIN_S)[0] / wanted_bytes - 1)
        < BIN_TOLERANCE
        for index in range(bins)
    ]
    for index in range(bins - 1):
        if at_level[index] and at_level[index + 1]:
            return (index + 1) * BIN_S * 1e3
    return float(bins * BIN_S * 1e3)


def _overcommitted_row(rig: Rig, rate_mbps: float, duration_s: float) -> Row:
    rig.set_rates(rate_mbps, OVERCOMMITMENT * rate_mbps / rig.agents)
    time.sleep(PAUSE_S)
    reception = rig.transfer(max(SEGMENT_PAYLOAD_BYTES, round(rate_mbps * 1e6 / 8 * duration_s / rig.agents)))
    from_s, until_s = _all_busy(reception)
    received = reception.received_bytes(from_s, until_s)
    wire_mbps = sum(received) * 8 / 1e6 / (until_s - from_s) * FRAME_BYTES / SEGMENT_PAYLOAD_BYTES
    return {
        "measure": "overcommitted",
        "agents": rig.agents,
        "channel_mbps": rate_mbps,
        "grants_sum_mbps": OVERCOMMITMENT * rate_mbps,
        "achieved_mbps": wire_mbps,
        "error": wire_mbps / rate_mbps - 1,
        "jain": jain_index(received),
    }


def delay_rows(privilege: Privilege = "auto") -> list[Row]:
    """Round trips of delayed paths relative to an undelayed one; without netem, a row with `skipped`."""
    rows: list[Row] = []
    for delay_ms in (0.0, *DELAYS_MS):
        impairments = Impairments(shared=LinkImpairments(up=Impairment(delay_ms=delay_ms)))
        try:
            with LinkSession.start(
                "kernel",
                agents=1,
                workers=1,
                channel_mbps=20.0,
                grant_mbps=20.0,
                privilege=privilege,
                impairments=impairments,
            ) as session:
                found = asyncio.run(verify_link(session, 1, 20.0, 20.0, impairments))
        except LinkUnavailable as error:  # LinkDeviates is one
            return [*rows, {"measure": "delay", "asked_ms": delay_ms, "skipped": str(error)}]
        (agent,) = found.agents
        rows.append({"measure": "delay", "asked_ms": delay_ms, "round_trip_ms": agent.round_trip_ms})
        rows[-1]["error_ms"] = rows[-1]["round_trip_ms"] - rows[0]["round_trip_ms"] - delay_ms
    return rows


def _replay_row(rig: Rig, duration_s: float) -> Row:
    """Replay a cellular trace: error of the cumulative bytes at each second, and of the trace's 20 ms bins."""
    changes = list(
        itertools.islice(
            CellularChannel.model_validate({"cell": "lte_driving"}).play(REPLAY_SEED), round(duration_s / 0.02)
        )
    )
    expected = np.array([change.mbps for change in changes]) * 1e6 / 8 * 0.02 / FRAME_BYTES * SEGMENT_PAYLOAD_BYTES
    first_s = 0.0

    def first() -> None:
        nonlocal first_s
        rig.set_channel(changes[0].mbps)
        first_s = time.monotonic()

    rig.set_rates(changes[0].mbps, 1000)
    time.sleep(PAUSE_S)
    rest = [(REPLAY_LEAD_S + change.at_s, partial(rig.set_channel, change.mbps)) for change in changes[1:]]
    lead_bytes = REPLAY_LEAD_S * changes[0].mbps * 1e6 / 8
    reception = rig.transfer(round(lead_bytes + 0.97 * expected.sum()), [(REPLAY_LEAD_S, first), *rest])
    at_s = np.array([at for at, _, _ in reception.reads]) - first_s
    count = np.array([count for _, _, count in reception.reads])
    whole = int(min(at_s[-1], duration_s) / 0.02)
    found = np.histogram(at_s, bins=np.arange(whole + 1) * 0.02, weights=count)[0]
    expected = expected[:whole]
    seconds = range(50, whole + 1, 50)
    by_second = [found[:n].sum() / expected[:n].sum() - 1 for n in seconds]
    return {
        "measure": "replay",
        "trace": "lte_driving",
        "seconds": round(whole * 0.02, 2),
        "mean_mbps": float(np.mean([change.mbps for change in changes[:whole]])),
        "largest_error_at_a_second": float(max(by_second, key=abs)),
        "mean_error_of_20_ms": float(np.abs(found - expected).mean() / expected.mean()),
    }


def _regranting_row(rig: Rig, duration_s: float) -> Row:
    """Change all grants ten times a second while all agents send: each agent's bytes against its granted bytes."""
    channel_mbps = 200.0
    rng = np.random.default_rng(0)
    steps = round(duration_s / REGRANT_S)
    shares = rng.dirichlet(np.full(rig.agents, 4.0), steps) * channel_mbps
    changed_s: list[float] = []

    def change(step: int) -> None:
        rig.set_grants(dict(enumerate(shares[step].tolist())))
        changed_s.append(time.monotonic())

    rig.set_rates(channel_mbps, channel_mbps / rig.agents)
    time.sleep(PAUSE_S)
    schedule = [(step * REGRANT_S, partial(change, step)) for step in range(steps)]
    reception = rig.transfer(round(1.1 * channel_mbps * 1e6 / 8 * duration_s / rig.agents), schedule)
    from_step = round(SETTLE_S / REGRANT_S)
    until_step = max(n for n, at_s in enumerate(changed_s) if at_s < min(reception.ends_s))
    spent_s = np.diff(changed_s[from_step : until_step + 1])
    granted = (shares[from_step:until_step] * spent_s[:, None]).sum(0) * 1e6 / 8
    received = np.array(reception.received_bytes(changed_s[from_step], changed_s[until_step]))
    error = received / SEGMENT_PAYLOAD_BYTES * FRAME_BYTES / granted - 1
    return {
        "measure": "regranting",
        "agents": rig.agents,
        "channel_mbps": channel_mbps,
        "changes": until_step - from_step,
        "error": float(np.median(error)),
        "worst_error": float(max(error, key=abs)),
        "all_error": float(received.sum() / SEGMENT_PAYLOAD_BYTES * FRAME_BYTES / granted.sum() - 1),
    }


def _all_busy(reception: Reception) -> tuple[float, float]:
    """The interval in which every agent was sending, without the first SETTLE_S seconds."""
    return max(reception.starts_s) + SETTLE_S, min(reception.ends_s)
