"""Figures of runs, each with a line on how to read it. Static SVG, which works offline and prints well."""

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from netem.fairness import jain_index
from reports import metrics
from reports.drawing import (
    COLOURS,
    GRID,
    HEIGHT_IN,
    INK,
    MARKERS,
    MAX_POINTS,
    WIDE_IN,
    Drawn,
    draw_axes,
    draw_figure,
    label,
    legend,
    line,
    shade,
    short,
    thinned,
)
from reports.runs import Run
from reports.schema import AllocatorSummary

MAX_AGENT_LINES = 12  # shares of more agents are drawn as a sum of the largest and the rest
STAGE_GROUPS = {
    "late start": ("lateness",),
    "queue": ("queue", "uplink_wait", "allocate"),
    "edge": ("prefill",),
    "encode": ("encode",),
    "wire": ("handshake", "transfer"),
    "cloud queue": ("cloud_queue",),
    "cloud prefill": ("cloud_prefill",),
    "decode": ("decode",),
    "answer": ("answer",),
}


def run_figures(runs: Sequence[Run]) -> list[Drawn]:
    """Figures of one run, or of several of one scenario: all requests pooled, timelines of the first run."""
    ledger = pooled(runs)
    return [drawn for figures in FIGURES.values() for drawn in figures(runs, ledger)]


def pooled(runs: Sequence[Run]) -> pd.DataFrame:
    """The requests of all runs, by allocator in the order of the first run's turns."""
    ledger = pd.concat([run.ledger for run in runs], ignore_index=True)
    order = list(dict.fromkeys(name for name in runs[0].ledger.allocator))
    return ledger.sort_values("allocator", key=lambda names: names.map(order.index), kind="stable")


def slack(ledger: pd.DataFrame) -> Drawn:
    """CDF of deadline minus latency; unanswered requests count as below every value."""

    def draw(ax: Axes) -> pd.DataFrame:
        rows = []
        for number, (name, own) in enumerate(_by_allocator(ledger)):
            found = np.sort((own.deadline_ms - own.latency_ms).dropna().to_numpy()) / 1e3
            missing = len(own) - len(found)
            share = 100 * (missing + np.arange(1, len(found) + 1)) / max(len(own), 1)
            if len(found):
                thin = thinned(len(found))
                x, y = np.r_[found[0], found[thin]], np.r_[100 * missing / len(own), share[thin]]
                ax.step(x, y, where="post", label=name, **line(number))
                rows += [(name, float(a), float(b)) for a, b in zip(x, y, strict=True)]
        ax.axvline(0, color=INK, linewidth=0.8, linestyle="--")
        label(ax, "slack: deadline − latency (s)", "requests with no more slack (%)")
        ax.set_ylim(0, 102)
        legend(ax, ledger.allocator.nunique())
        return pd.DataFrame(rows, columns=["allocator", "slack_s", "percent"])

    read = "Left of the dashed line the deadline was missed; a curve that begins above 0 %: that share got no answer."
    return draw_axes("slack", "Slack at the end of a request", read, draw)


def stages(ledger: pd.DataFrame) -> Drawn:
    """Mean stage times of answered requests."""
    answered = ledger[ledger.latency_ms.notna()]
    found = pd.DataFrame(
        {
            title: answered[[f"{stage}_ms" for stage in parts if f"{stage}_ms" in answered]].sum(axis=1)
            for title, parts in STAGE_GROUPS.items()
        }
    )
    mean = found.groupby(answered.allocator.to_numpy(), sort=False).mean()

    def draw(ax: Axes) -> pd.DataFrame:
        left = np.zeros(len(mean))
        for number, title in enumerate(mean.columns):
            width = mean[title].to_numpy()
            if width.any():
                ax.barh(range(len(mean)), width, left=left, label=title, color=shade(number), height=0.65)
            left = left + width
        ax.set_yticks(range(len(mean)), [short(name) for name in mean.index])
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        label(ax, "mean time of an answered request (ms)", "")
        if mean.to_numpy().any():
            ax.figure.legend(loc="outside lower center", ncols=4)
        return mean.rename_axis("allocator").reset_index()

    return draw_axes(
        "stages",
        "Where the time went",
        "The widest part dominates latency; late requests are included, unanswered ones are not.",
        draw,
        height=max(HEIGHT_IN, 1.7 + 0.3 * len(mean)),
    )


def agents(ledger: pd.DataFrame) -> Drawn:
    """Every agent's compliance, from the worst to the best."""

    def draw(ax: Axes) -> pd.DataFrame:
        tables = []
        for number, (name, own) in enumerate(_by_allocator(ledger)):
            met = metrics.compliance_by_agent(own)
            sorted_met = met.sort_values(kind="stable")
            thin = thinned(len(met))
            ax.plot(
                thin + 1,
                sorted_met.to_numpy()[thin],
                label=f"{name}: Jain {jain_index(met.tolist()):.2f}",
                **line(number),
                marker=MARKERS[number % 8],
                markersize=3,
            )
            tables.append(pd.DataFrame({"allocator": name, "agent_id": met.index, "met_percent": met.to_numpy()}))
        ax.set_ylim(-3, 103)
        label(ax, "agents, from the worst served to the best", "met (%)")
        legend(ax, ledger.allocator.nunique())
        return pd.concat(tables)

    return draw_axes(
        "agents",
        "Agent by agent",
        "A steep curve: some agents are served at others' cost. Jain's index of compliance is 1 if all are equal.",
        draw,
    )


def predicted(ledger: pd.DataFrame) -> Drawn:
    """Latency as predicted at assignment against observed latency."""
    both = ledger[ledger.latency_ms.notna() & ledger.predicted_ms.notna()]
    shown = both.sample(min(len(both), MAX_POINTS), random_state=0).sort_index()

    def draw(ax: Axes) -> pd.DataFrame:
        for number, name in enumerate(dict.fromkeys(ledger.allocator)):
            part = shown[shown.allocator == name]
            mine = both[both.allocator == name]
            error = (mine.latency_ms - mine.predicted_ms).median() if len(mine) else float("nan")
            ax.plot(
                part.predicted_ms / 1e3,
                part.latency_ms / 1e3,
                linestyle="",
                marker=MARKERS[number % 8],
                markersize=3,
                alpha=0.55,
                color=COLOURS[number % 8],
                label=f"{name}: median {error:+.0f} ms",
            )
        top = max(1e-3, float(np.nanmax(shown[["predicted_ms", "latency_ms"]].to_numpy())) / 1e3) if len(shown) else 1.0
        ax.plot([0, top], [0, top], color=INK, linewidth=0.8, linestyle="--")
        label(ax, "predicted latency (s)", "observed latency (s)")
        legend(ax, ledger.allocator.nunique())
        return shown[["allocator", "request_id", "predicted_ms", "latency_ms"]]

    sampled = f" A sample of {len(shown):,} of {len(both):,}." if len(shown) < len(both) else ""
    return draw_axes(
        "predicted",
        "Predicted against observed latency",
        f"Above the dashed line a request took longer than the allocator predicted when it chose the mode.{sampled}",
        draw,
    )


def bandwidth(runs: Sequence[Run]) -> list[Drawn]:
    """Configured against achieved rate of the shared hop."""
    timeline = pd.concat([run.timeline for run in runs]) if runs else pd.DataFrame()
    if timeline.empty:
        return []
    frame = timeline.assign(granted=timeline.grants_mbps.map(sum))
    frame["configured_mbps"] = np.minimum(frame.channel_mbps, frame.granted)
    # Only moments with data to send before, at and after them, and a constant configured rate.
    steady = (frame.in_flight > 0) & (frame.in_flight.shift() > 0) & (frame.in_flight.shift(-1) > 0)
    steady &= (frame.configured_mbps - frame.configured_mbps.shift()).abs() < 1e-3 * frame.configured_mbps
    steady &= frame.allocator == frame.allocator.shift()
    busy = frame[steady]
    if busy.empty:
        return []
    shown = busy.sample(min(len(busy), MAX_POINTS), random_state=0).sort_index()
    error = 100 * (busy.used_mbps / busy.configured_mbps - 1)

    def draw(ax: Axes) -> pd.DataFrame:
        for number, name in enumerate(dict.fromkeys(frame.allocator)):
            part = shown[shown.allocator == name]
            ax.plot(
                part.configured_mbps,
                part.used_mbps,
                linestyle="",
                marker=MARKERS[number % 8],
                markersize=3,
                alpha=0.55,
                color=COLOURS[number % 8],
                label=name,
            )
        top = float(shown[["configured_mbps", "used_mbps"]].to_numpy().max())
        ax.plot([0, top], [0, top], color=INK, linewidth=0.8, linestyle="--")
        label(ax, "configured: channel, or the grants in use (Mbit/s)", "achieved over 0.2 s (Mbit/s)")
        legend(ax, frame.allocator.nunique())
        return shown[["allocator", "at_s", "configured_mbps", "used_mbps"]]

    read = (
        f"On the dashed line the link achieved its configured rate: median {error.median():+.1f} %, middle half "
        f"{error.quantile(0.25):+.1f} to {error.quantile(0.75):+.1f} %. Below it, senders were idle for a while."
    )
    return [draw_axes("bandwidth", "Configured against achieved bandwidth", read, draw)]


def modes(ledger: pd.DataFrame) -> Drawn:
    """Share of each mode, and how often agents changed modes."""
    assigned = ledger.assign(mode=ledger["mode"].where(ledger["mode"] != "", "none"))
    share = 100 * assigned.groupby(["allocator", "mode"], sort=False).size().unstack(fill_value=0)
    share = share.div(ledger.allocator.value_counts().reindex(share.index), axis=0)
    switched = {name: switch_share(own) for name, own in _by_allocator(ledger)}

    def draw(ax: Axes) -> pd.DataFrame:
        left = np.zeros(len(share))
        for number, mode in enumerate(share.columns):
            ax.barh(
                range(len(share)),
                share[mode],
                left=left,
                label=mode,
                color=GRID if mode == "none" else shade(number),
                height=0.65,
            )
            left = left + share[mode].to_numpy()
        ax.set_yticks(range(len(share)), [f"{short(name)}\n{switched[name]:.0f} % switched" for name in share.index])
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.grid(axis="y", visible=False)
        label(ax, "requests (%)", "")
        ax.figure.legend(loc="outside lower center", ncols=5)
        return share.assign(switched_percent=pd.Series(switched)).rename_axis("allocator").reset_index()

    return draw_axes(
        "modes",
        "Modes, and how often they changed",
        "Switched: requests whose mode differs from that of the same agent's previous request.",
        draw,
        height=max(HEIGHT_IN, 1.7 + 0.35 * len(share)),
    )


def solving(allocators: dict[str, AllocatorSummary]) -> list[Drawn]:
    """Distribution of solve times."""
    curves = {name: s.solve_curve_ms for name, s in allocators.items() if s.solve_curve_ms}
    if not curves:
        return []

    def draw(ax: Axes) -> pd.DataFrame:
        for number, (name, curve) in enumerate(curves.items()):
            ax.plot(np.maximum(curve, 1e-3), np.linspace(0, 100, len(curve)), label=name, **line(number))
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_ylim(0, 102)
        label(ax, "time to solve once (ms, logarithmic)", "of all solves (%)")
        legend(ax, len(curves))
        return pd.DataFrame(
            curves, index=pd.Index(np.linspace(0, 100, len(next(iter(curves.values())))), name="percent")
        ).reset_index()

    return [
        draw_axes(
            "solving", "Solve times", "Below about a millisecond, they are negligible against any deadline.", draw
        )
    ]


def timelines(run: Run) -> list[Drawn]:
    """A timeline of each turn: channel and use, shares, requests with modes and misses, and events."""
    if run.timeline.empty:
        return []
    names = dict.fromkeys(run.ledger.allocator)
    all_modes = [mode for mode in dict.fromkeys(run.ledger["mode"]) if mode]
    return [_timeline(run, name, {mode: shade(i) for i, mode in enumerate(all_modes)}) for name in names]


def _timeline(run: Run, name: str, colours: dict[str, str]) -> Drawn:
    rows = run.ledger[run.ledger.allocator == name].sort_values("intended_s")
    moments = run.timeline[run.timeline.allocator == name]
    cut = len(rows) > MAX_POINTS
    until_s = float(rows.intended_s.iloc[MAX_POINTS]) if cut else float("inf")
    rows, moments = rows[rows.intended_s < until_s], moments[moments.at_s < until_s]
    thin = moments.iloc[thinned(len(moments))]
    events = [e for e in run.events if e.allocator == name and e.at_s < until_s]

    def draw(figure: Figure) -> pd.DataFrame:
        top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 4))
        top.step(thin.at_s, thin.channel_mbps, where="post", color=INK, linewidth=1.2, label="channel")
        top.fill_between(
            thin.at_s, thin.used_mbps, step="pre", alpha=0.35, color=COLOURS[0], linewidth=0, label="in use"
        )
        top.plot(thin.at_s, thin.estimate_mbps, color=COLOURS[1], linewidth=1, label="estimate")
        top.set_ylim(bottom=0)
        label(top, "", "Mbit/s")
        top.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1)
        grants = np.array([list(row) for row in thin.grants_mbps], dtype=float)
        if grants.size:
            largest = np.argsort(-grants.mean(0))[:MAX_AGENT_LINES]
            rest = grants.sum(1) - grants[:, largest].sum(1)
            parts = [*grants[:, np.sort(largest)].T, *([rest] if len(largest) < grants.shape[1] else [])]
            middle.stackplot(thin.at_s, parts, colors=[shade(i) for i in range(len(parts))], linewidth=0, step="post")
        middle.set_ylim(bottom=0)
        label(middle, "", "shares\n(Mbit/s)")
        ended_s = rows.intended_s + rows.latency_ms.fillna(rows.deadline_ms) / 1e3
        for mode, colour in colours.items():
            own = rows[rows["mode"] == mode]
            bottom.hlines(own.agent_id, own.intended_s, ended_s[own.index], colors=colour, linewidth=2.2, label=mode)
        missed = rows[~metrics.is_met(rows)]
        bottom.plot(
            ended_s[missed.index],
            missed.agent_id,
            linestyle="",
            marker="x",
            color="#d62728",
            markersize=4,
            markeredgewidth=1,
            label="missed",
        )
        agents_shown = int(rows.agent_id.max()) + 1 if len(rows) else 1
        bottom.set_ylim(agents_shown - 0.5, -0.5)
        bottom.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(min(8, agents_shown), integer=True))
        label(bottom, "time since the turn began (s)", "agent")
        bottom.legend(ncols=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), borderaxespad=0)
        for axis in (top, middle, bottom):
            for event in events:
                axis.axvline(event.at_s, color="#d62728", linewidth=0.8, linestyle=":")
        return moments.drop(columns=["paused"], errors="ignore")

    told = "".join(f" {e.at_s:.1f} s: {e.text}." for e in events[:12])
    shown = f" The first {until_s:.0f} s, {len(rows):,} requests." if cut else ""
    read = (
        "A line is a request, from intended start to end, coloured by mode; × missed its deadline. Blue up to black: a "
        f"full uplink.{shown}{told}"
    )
    return draw_figure(f"timeline_{name}", f"The turn of {name}", read, draw, WIDE_IN, 5.2, wide=True)


def switch_share(rows: pd.DataFrame) -> float:
    """Percentage of assigned requests whose mode differs from that of the same agent's previous request."""
    assigned = rows[rows["mode"] != ""].sort_values("intended_s", kind="stable")
    before = assigned.groupby(["allocator", "agent_id"])["mode"].shift()
    known = before.notna()
    return 100 * float((assigned["mode"][known] != before[known]).mean()) if known.any() else 0.0


def _by_allocator(ledger: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), own) for name, own in ledger.groupby("allocator", sort=False)]


def _if(draw: Callable[[pd.DataFrame], Drawn], ledger: pd.DataFrame) -> list[Drawn]:
    """Draw only if there are several agents to compare."""
    return [draw(ledger)] if ledger.agent_id.nunique() > 1 else []


BINS = 10  # of probability


def reliability(ledger: pd.DataFrame) -> list[Drawn]:
    """How often modes were in time that were thought so probable to be; nothing where one rate was taken for sure."""
    if "likely" not in ledger or not ledger.likely.notna().any():
        return []
    known = ledger[ledger.likely.notna()]
    own = (known.status == "met") & (known["mode"] == known.answered)
    bins = (known.likely * BINS).clip(upper=BINS - 1).astype(int)
    groups = pd.DataFrame({"allocator": known.allocator, "bin": bins, "predicted": known.likely, "observed": own})
    found = groups.groupby(["allocator", "bin"], sort=False).agg(
        predicted=("predicted", "mean"), observed=("observed", "mean"), requests=("observed", "size")
    )

    def draw(ax: Axes) -> pd.DataFrame:
        ax.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle="--")
        for number, (name, rows) in enumerate(found.groupby("allocator", sort=False)):
            rows = rows.sort_values("predicted")
            size = 12 + 140 * rows.requests / found.requests.max()
            ax.scatter(100 * rows.predicted, 100 * rows.observed, s=size, color=COLOURS[number % 8], alpha=0.55)
            ax.plot(100 * rows.predicted, 100 * rows.observed, label=str(name), **line(number))
        label(ax, "probability to be in time, as predicted (%)", "in time (%)")
        legend(ax, found.index.get_level_values("allocator").nunique())
        return found.reset_index()

    read = (
        "Of requests whose mode was thought so likely to be in time, how many were answered from it in time; the size "
        "of a mark is their number. On the dashed line predictions are calibrated; below it, they promise too much."
    )
    return [draw_axes("reliability", "Are predictions calibrated?", read, draw)]


FIGURES: dict[str, Callable[[Sequence[Run], pd.DataFrame], list[Drawn]]] = {
    "timeline": lambda runs, ledger: timelines(runs[0]),
    "slack": lambda runs, ledger: [slack(ledger)],
    "stages": lambda runs, ledger: [stages(ledger)],
    "agents": lambda runs, ledger: _if(agents, ledger),
    "predicted": lambda runs, ledger: [predicted(ledger)],
    "reliability": lambda runs, ledger: reliability(ledger),
    "bandwidth": lambda runs, ledger: bandwidth(runs),
    "modes": lambda runs, ledger: [modes(ledger)],
    "solving": lambda runs, ledger: solving(runs[0].allocators),
}
"""The figures of a run in the order of the report, made of runs and their pooled requests; none where there is nothing
to draw. The names of what a figure draws begin with its own."""
