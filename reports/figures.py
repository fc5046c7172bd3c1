"""The figures of a report, each with the line that says what to read off it. Static SVG: works offline, prints well."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.runs import Run

# Drawn in these, and replaced in the SVG by what the page's theme says; PNGs keep them.
INK, GRID = "#1b1c1d", "#d4d5d6"
THEMED = {INK: "currentColor", GRID: "var(--grid)"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7f6bb3", "#8c8c8c")  # Okabe and Ito's
MARKERS = "osD^vPX*"
WIDTH_IN, HEIGHT_IN = 5.4, 3.3
WIDE_IN = 11.2
MAX_POINTS = 1500  # drawn one by one; more are sampled, and the figure says so
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

matplotlib.use("svg")
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names are names
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "legend.frameon": False,
    "legend.fontsize": 8,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Drawn:
    """A figure.

    Attributes:
        name: for files; title; read: what to read off it, in a line.
        svg: to be put into a page; its colours follow the page's theme. png: for elsewhere.
        data: what was drawn, or nothing if that is the ledger itself.
    """

    name: str
    title: str
    read: str
    svg: str
    png: bytes
    data: pd.DataFrame | None = None
    wide: bool = False


def run_figures(run: Run) -> list[Drawn]:
    """All figures of one run, as far as it has what they show."""
    ledger = run.ledger
    return [
        *timelines(run),
        slack(ledger),
        stages(ledger),
        *_if(agents, ledger),
        predicted(ledger),
        *bandwidth([run]),
        modes(ledger),
        *solving(run.summary["allocators"]),
    ]


def pooled_figures(runs: Sequence[Run]) -> list[Drawn]:
    """Figures of several runs of one scenario, all requests together; the timeline is the first run's."""
    ledger = pd.concat([run.ledger for run in runs], ignore_index=True)
    order = list(dict.fromkeys(name for name in runs[0].ledger.allocator))
    ledger = ledger.sort_values("allocator", key=lambda names: names.map(order.index), kind="stable")
    return [
        *timelines(runs[0]),
        slack(ledger),
        stages(ledger),
        *_if(agents, ledger),
        predicted(ledger),
        *bandwidth(runs),
        modes(ledger),
        *solving(runs[0].summary["allocators"]),
    ]


def slack(ledger: pd.DataFrame) -> Drawn:
    """CDF of deadline minus latency; a request without an answer is below all of it."""

    def draw(ax: Axes) -> pd.DataFrame:
        rows = []
        for number, (name, own) in enumerate(_by_allocator(ledger)):
            found = np.sort((own.deadline_ms - own.latency_ms).dropna().to_numpy()) / 1e3
            missing = len(own) - len(found)
            share = 100 * (missing + np.arange(1, len(found) + 1)) / max(len(own), 1)
            if len(found):
                thin = _thin(len(found))
                x, y = np.r_[found[0], found[thin]], np.r_[100 * missing / len(own), share[thin]]
                ax.step(x, y, where="post", label=name, **_line(number))
                rows += [(name, float(a), float(b)) for a, b in zip(x, y, strict=True)]
        ax.axvline(0, color=INK, linewidth=0.8, linestyle="--")
        _labels(ax, "slack: deadline − latency (s)", "requests with no more slack (%)")
        ax.set_ylim(0, 102)
        _legend(ax, ledger.allocator.nunique())
        return pd.DataFrame(rows, columns=["allocator", "slack_s", "percent"])

    read = "Left of the dashed line the deadline was missed; a curve that begins above 0 %: that share got no answer."
    return _draw("slack", "Slack at the end of a request", read, draw)


def stages(ledger: pd.DataFrame) -> Drawn:
    """Where the time of answered requests went."""
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
                ax.barh(range(len(mean)), width, left=left, label=title, color=_shade(number), height=0.65)
            left = left + width
        ax.set_yticks(range(len(mean)), [_short(name) for name in mean.index])
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        _labels(ax, "mean time of an answered request (ms)", "")
        ax.figure.legend(loc="outside lower center", ncols=4)
        return mean.rename_axis("allocator").reset_index()

    return _draw(
        "stages",
        "Where the time went",
        "The widest part is what to shorten first; late requests count, unanswered ones don't.",
        draw,
        height=max(HEIGHT_IN, 1.7 + 0.3 * len(mean)),
    )


def agents(ledger: pd.DataFrame) -> Drawn:
    """Every agent's compliance, from the worst to the best."""

    def draw(ax: Axes) -> pd.DataFrame:
        tables = []
        for number, (name, own) in enumerate(_by_allocator(ledger)):
            met = 100 * (own.status == "met").groupby(own.agent_id).mean()
            sorted_met = met.sort_values(kind="stable")
            thin = _thin(len(met))
            ax.plot(
                thin + 1,
                sorted_met.to_numpy()[thin],
                label=f"{name}: Jain {jain(met.to_numpy()):.2f}",
                **_line(number),
                marker=MARKERS[number % 8],
                markersize=3,
            )
            tables.append(pd.DataFrame({"allocator": name, "agent_id": met.index, "met_percent": met.to_numpy()}))
        ax.set_ylim(-3, 103)
        _labels(ax, "agents, from the worst served to the best", "met (%)")
        _legend(ax, ledger.allocator.nunique())
        return pd.concat(tables)

    return _draw(
        "agents",
        "Agent by agent",
        "A steep curve: some are served at the cost of others. Jain's index of compliance is 1 where all are alike.",
        draw,
    )


def predicted(ledger: pd.DataFrame) -> Drawn:
    """The allocator's prediction at assignment against what happened."""
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
        _labels(ax, "predicted latency (s)", "observed latency (s)")
        _legend(ax, ledger.allocator.nunique())
        return shown[["allocator", "request_id", "predicted_ms", "latency_ms"]]

    sampled = f" A sample of {len(shown):,} of {len(both):,}." if len(shown) < len(both) else ""
    return _draw(
        "predicted",
        "Predicted against observed latency",
        f"Above the dashed line a request took longer than the allocator believed when it chose the mode.{sampled}",
        draw,
    )


def bandwidth(runs: Sequence[Run]) -> list[Drawn]:
    """What was configured of the shared hop against what went through it."""
    timeline = pd.concat([run.timeline for run in runs]) if runs else pd.DataFrame()
    if timeline.empty:
        return []
    frame = timeline.assign(granted=timeline.grants_mbps.map(sum))
    frame["configured_mbps"] = np.minimum(frame.channel_mbps, frame.granted)
    # Only where there was something to send all the time, at a rate that held: before, at and after the moment.
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
        _labels(ax, "configured: channel, or the grants in use (Mbit/s)", "achieved over 0.2 s (Mbit/s)")
        _legend(ax, frame.allocator.nunique())
        return shown[["allocator", "at_s", "configured_mbps", "used_mbps"]]

    read = (
        f"On the dashed line the link carried what it was told to: median {error.median():+.1f} %, middle half "
        f"{error.quantile(0.25):+.1f} to {error.quantile(0.75):+.1f} %. Below it, nothing to send for a while."
    )
    return [_draw("bandwidth", "Configured against achieved bandwidth", read, draw)]


def modes(ledger: pd.DataFrame) -> Drawn:
    """Which modes were assigned, and how often agents changed theirs."""
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
                color=GRID if mode == "none" else _shade(number),
                height=0.65,
            )
            left = left + share[mode].to_numpy()
        ax.set_yticks(range(len(share)), [f"{_short(name)}\n{switched[name]:.0f} % switched" for name in share.index])
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.grid(axis="y", visible=False)
        _labels(ax, "requests (%)", "")
        ax.figure.legend(loc="outside lower center", ncols=5)
        return share.assign(switched_percent=pd.Series(switched)).rename_axis("allocator").reset_index()

    return _draw(
        "modes",
        "Modes, and how often they changed",
        "Switched: requests whose mode isn't that of the same agent's request before.",
        draw,
        height=max(HEIGHT_IN, 1.7 + 0.35 * len(share)),
    )


def solving(allocators: dict[str, Any]) -> list[Drawn]:
    """How long allocators took to decide."""
    curves = {name: s["solve_curve_ms"] for name, s in allocators.items() if s.get("solve_curve_ms")}
    if not curves:
        return []

    def draw(ax: Axes) -> pd.DataFrame:
        for number, (name, curve) in enumerate(curves.items()):
            ax.plot(np.maximum(curve, 1e-3), np.linspace(0, 100, len(curve)), label=name, **_line(number))
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_ylim(0, 102)
        _labels(ax, "time to solve once (ms, logarithmic)", "of all solves (%)")
        _legend(ax, len(curves))
        return pd.DataFrame(
            curves, index=pd.Index(np.linspace(0, 100, len(next(iter(curves.values())))), name="percent")
        ).reset_index()

    return [_draw("solving", "What deciding took", "What lies left of a millisecond costs nobody a deadline.", draw)]


def timelines(run: Run) -> list[Drawn]:
    """Each turn as it went: channel and use, shares, requests with their modes and misses, and what was done to it."""
    if run.timeline.empty:
        return []
    names = dict.fromkeys(run.ledger.allocator)
    all_modes = [mode for mode in dict.fromkeys(run.ledger["mode"]) if mode]
    return [_timeline(run, name, {mode: _shade(i) for i, mode in enumerate(all_modes)}) for name in names]


def _timeline(run: Run, name: str, colours: dict[str, str]) -> Drawn:
    rows = run.ledger[run.ledger.allocator == name].sort_values("intended_s")
    moments = run.timeline[run.timeline.allocator == name]
    cut = len(rows) > MAX_POINTS
    until_s = float(rows.intended_s.iloc[MAX_POINTS]) if cut else float("inf")
    rows, moments = rows[rows.intended_s < until_s], moments[moments.at_s < until_s]
    thin = moments.iloc[_thin(len(moments))]
    events = [e for e in run.events if e.get("allocator") == name and float(e.get("at_s", 0)) < until_s]

    def draw(figure: Figure) -> pd.DataFrame:
        top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 4))
        top.step(thin.at_s, thin.channel_mbps, where="post", color=INK, linewidth=1.2, label="channel")
        top.fill_between(
            thin.at_s, thin.used_mbps, step="pre", alpha=0.35, color=COLOURS[0], linewidth=0, label="in use"
        )
        top.plot(thin.at_s, thin.estimate_mbps, color=COLOURS[1], linewidth=1, label="estimate")
        top.set_ylim(bottom=0)
        _labels(top, "", "Mbit/s")
        top.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1)
        grants = np.array([list(row) for row in thin.grants_mbps], dtype=float)
        if grants.size:
            largest = np.argsort(-grants.mean(0))[:MAX_AGENT_LINES]
            rest = grants.sum(1) - grants[:, largest].sum(1)
            parts = [*grants[:, np.sort(largest)].T, *([rest] if len(largest) < grants.shape[1] else [])]
            middle.stackplot(thin.at_s, parts, colors=[_shade(i) for i in range(len(parts))], linewidth=0, step="post")
        _labels(middle, "", "shares\n(Mbit/s)")
        ended_s = rows.intended_s + rows.latency_ms.fillna(rows.deadline_ms) / 1e3
        for mode, colour in colours.items():
            own = rows[rows["mode"] == mode]
            bottom.hlines(own.agent_id, own.intended_s, ended_s[own.index], colors=colour, linewidth=2.2, label=mode)
        missed = rows[rows.status != "met"]
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
        _labels(bottom, "time since the turn began (s)", "agent")
        bottom.legend(ncols=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), borderaxespad=0)
        for axis in (top, middle, bottom):
            for event in events:
                axis.axvline(float(event["at_s"]), color="#d62728", linewidth=0.8, linestyle=":")
        return moments.drop(columns=["paused"], errors="ignore")

    told = "".join(f" {float(e['at_s']):.1f} s: {e['text']}." for e in events[:12])
    shown = f" The first {until_s:.0f} s, {len(rows):,} requests." if cut else ""
    read = (
        "A line is a request, from intended start to end, coloured by mode; × missed its deadline. Blue up to black: a "
        f"full uplink.{shown}{told}"
    )
    return _draw_figure(f"timeline_{name}", f"The turn of {name}", read, draw, WIDE_IN, 5.2, wide=True)


def load(points: Sequence[dict[str, Any]], compared: Sequence[str]) -> list[Drawn]:
    """Compliance against what was swept, with bands; one figure for every key that takes several numbers."""
    drawn = []
    keys = dict.fromkeys(key for point in points for key in point["point"])
    for key in keys:
        others = [{k: v for k, v in point["point"].items() if k != key} for point in points]
        mine = [p for p, other in zip(points, others, strict=True) if other == others[0]]
        numbers = [p["point"].get(key) for p in mine]
        if len(mine) < 2 or not all(isinstance(n, int | float) for n in numbers):
            continue
        mine = sorted(mine, key=lambda p: p["point"][key])
        fixed = ", ".join(f"{k} {v}" for k, v in others[0].items())
        drawn.append(_load(key, mine, compared, fixed))
    return drawn


def _load(key: str, points: Sequence[dict[str, Any]], compared: Sequence[str], fixed: str) -> Drawn:
    names = list(dict.fromkeys(name for p in points for name in p["figures"]))

    def draw(ax: Axes) -> pd.DataFrame:
        rows = []
        for number, name in enumerate(names):
            own = [(p["point"][key], p["figures"][name]["compliance"]) for p in points if name in p["figures"]]
            x = [value for value, _ in own]
            style = _line(number) | ({} if name in compared else {"linestyle": ":"})
            ax.plot(x, [f["mean"] for _, f in own], marker=MARKERS[number % 8], markersize=4, label=name, **style)
            ax.fill_between(
                x,
                [f["low"] for _, f in own],
                [f["high"] for _, f in own],
                color=COLOURS[number % 8],
                alpha=0.15,
                linewidth=0,
            )
            rows += [(name, value, f["mean"], f["low"], f["high"]) for value, f in own]
        ax.set_ylim(-3, 103)
        _labels(ax, key, "met (%)")
        _legend(ax, len(names))
        return pd.DataFrame(rows, columns=["allocator", key, "met_percent", "low", "high"])

    where = f" At {fixed}." if fixed else ""
    read = f"Bands: 95 % intervals of the mean over seeds; dotted lines: for orientation.{where}"
    return _draw(f"load_{_safe(key)}", f"Compliance against {key}", read, draw, wide=True)


def tradeoff(point: dict[str, Any], compared: Sequence[str], number: int) -> Drawn:
    """Delivered quality against compliance."""

    def draw(ax: Axes) -> pd.DataFrame:
        rows = []
        for i, (name, f) in enumerate(point["figures"].items()):
            x, y = f["compliance"], f["delivered_quality"]
            hollow: dict[str, Any] = {} if name in compared else {"markerfacecolor": "none"}
            ax.errorbar(
                x["mean"],
                y["mean"],
                xerr=_bars(x),
                yerr=_bars(y),
                marker=MARKERS[i % 8],
                color=COLOURS[i % 8],
                linewidth=0,
                elinewidth=1,
                markersize=6,
                label=name,
                **hollow,
            )
            rows.append((name, x["mean"], y["mean"]))
        _labels(ax, "met (%)", "quality delivered")
        _legend(ax, len(point["figures"]))
        return pd.DataFrame(rows, columns=["allocator", "met_percent", "quality"])

    read = (
        "Up and right is better; bars are 95 % intervals. Hollow marks: for orientation (clairvoyant knows the present "
        f"rate).{_at(point)}"
    )
    return _draw(f"tradeoff_{number}", "Quality against compliance", read, draw)


def differences(point: dict[str, Any], metric: str, title: str, unit: str, number: int) -> list[Drawn]:
    """Paired differences with their intervals."""
    verdicts = [v for v in point["verdicts"] if v["metric"] == metric]
    if not verdicts:
        return []

    def draw(ax: Axes) -> pd.DataFrame:
        for i, v in enumerate(verdicts):
            shown = v["low"] > 0 or v["high"] < 0
            ax.errorbar(
                v["mean"],
                i,
                xerr=[[v["mean"] - v["low"]], [v["high"] - v["mean"]]],
                marker="o",
                markersize=5,
                color=COLOURS[0] if shown else COLOURS[7],
                capsize=3,
            )
        ax.axvline(0, color=INK, linewidth=0.8, linestyle="--")
        ax.set_yticks(range(len(verdicts)), [f"{_short(v['first'])}\n− {_short(v['second'])}" for v in verdicts])
        ax.set_ylim(len(verdicts) - 0.5, -0.5)
        _labels(ax, f"difference in {title} ({unit})", "")
        return pd.DataFrame(verdicts)

    read = f"Right of the dashed line the first is better; an interval that holds zero shows no difference.{_at(point)}"
    return [
        _draw(
            f"differences_{metric}_{number}",
            f"Who is better: {title}",
            read,
            draw,
            height=max(HEIGHT_IN, 1.0 + 0.5 * len(verdicts)),
        )
    ]


def jain(values: np.ndarray) -> float:
    """Jain's fairness index, (Σx)² / (n Σx²): 1 where all are equal, 1/n where one has everything (Jain et al. 1984).

    1 where all are 0, too.
    """
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares else 1.0


def switch_share(rows: pd.DataFrame) -> float:
    """Percent of an allocator's assigned requests whose mode isn't that of the same agent's request before."""
    assigned = rows[rows["mode"] != ""].sort_values("intended_s", kind="stable")
    before = assigned.groupby(["allocator", "agent_id"])["mode"].shift()
    known = before.notna()
    return 100 * float((assigned["mode"][known] != before[known]).mean()) if known.any() else 0.0


def _draw(
    name: str,
    title: str,
    read: str,
    draw: Callable[[Axes], pd.DataFrame],
    height: float = HEIGHT_IN,
    wide: bool = False,
) -> Drawn:
    return _draw_figure(
        name, title, read, lambda figure: draw(figure.subplots()), WIDE_IN if wide else WIDTH_IN, height, wide
    )


def _draw_figure(
    name: str, title: str, read: str, draw: Callable[[Figure], pd.DataFrame], width: float, height: float, wide: bool
) -> Drawn:
    rc: Any = STYLE | {"svg.hashsalt": name}
    # The salt makes ids of one page differ, and those of the same figure the same again.
    with matplotlib.rc_context(rc):
        figure = Figure(figsize=(width, height))
        data = draw(figure)
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return Drawn(_safe(name), title, read, _themed(svg.getvalue(), title), png.getvalue(), data, wide)


def _themed(svg: str, title: str) -> str:
    """The element alone, without fixed size, in the page's colours, with a name for those who don't see it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    for drawn, themed in THEMED.items():
        svg = svg.replace(drawn, themed)
    return svg


def _by_allocator(ledger: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), own) for name, own in ledger.groupby("allocator", sort=False)]


def _if(draw: Callable[[pd.DataFrame], Drawn], ledger: pd.DataFrame) -> list[Drawn]:
    """Nothing to compare where there is one agent."""
    return [draw(ledger)] if ledger.agent_id.nunique() > 1 else []


def _line(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % 8], "linewidth": 1.5, "linestyle": ("-", "--")[number // 8 % 2]}


def _shade(number: int) -> str:
    return COLOURS[number % 8] if number < 8 else matplotlib.colors.to_hex(matplotlib.colormaps["tab20"](number % 20))


def _labels(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def _legend(ax: Axes, entries: int) -> None:
    if entries > 1:
        ax.figure.legend(loc="outside lower center", ncols=2 if entries > 3 else entries)


def _bars(f: dict[str, float]) -> list[list[float]]:
    return [[max(0.0, f["mean"] - f["low"])], [max(0.0, f["high"] - f["mean"])]]


def _at(point: dict[str, Any]) -> str:
    swept = ", ".join(f"{key} {value}" for key, value in point["point"].items())
    return f" At {swept}." if swept else ""


def _thin(count: int, most: int = MAX_POINTS) -> np.ndarray:
    """Indices of at most so many of `count`, evenly, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)) if count else np.zeros(0, int)


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)
