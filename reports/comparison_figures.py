"""Figures of comparisons: compliance against load, quality against compliance, paired differences."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from reports.comparison import METRICS, UNITS
from reports.drawing import COLOURS, HEIGHT_IN, INK, MARKERS, Drawn, draw_axes, label, legend, line, safe_name, short
from reports.schema import Comparison, ComparisonPoint, Interval, Metric


def load(points: Sequence[ComparisonPoint], compared: Sequence[str]) -> list[Drawn]:
    """Compliance against swept values, with confidence bands; one figure for every key with several numbers."""
    drawn = []
    keys = dict.fromkeys(key for point in points for key in point.point)
    for key in keys:
        others = [{k: v for k, v in point.point.items() if k != key} for point in points]
        mine = [p for p, other in zip(points, others, strict=True) if other == others[0]]
        numbers = [p.point.get(key) for p in mine]
        if len(mine) < 2 or not all(isinstance(n, int | float) for n in numbers):
            continue
        mine = sorted(mine, key=lambda p: p.point[key])
        fixed = ", ".join(f"{k} {v}" for k, v in others[0].items())
        drawn.append(_load(key, mine, compared, fixed))
    return drawn


def _load(key: str, points: Sequence[ComparisonPoint], compared: Sequence[str], fixed: str) -> Drawn:
    names = list(dict.fromkeys(name for p in points for name in p.figures))

    def draw(ax: Axes) -> pd.DataFrame:
        rows = []
        for number, name in enumerate(names):
            own = [(p.point[key], p.figures[name].compliance) for p in points if name in p.figures]
            x = [value for value, _ in own]
            style = line(number) | ({} if name in compared else {"linestyle": ":"})
            ax.plot(x, [f.mean for _, f in own], marker=MARKERS[number % 8], markersize=4, label=name, **style)
            ax.fill_between(
                x,
                [f.low for _, f in own],
                [f.high for _, f in own],
                color=COLOURS[number % 8],
                alpha=0.15,
                linewidth=0,
            )
            rows += [(name, value, f.mean, f.low, f.high) for value, f in own]
        ax.set_ylim(-3, 103)
        label(ax, key, "met (%)")
        legend(ax, len(names))
        return pd.DataFrame(rows, columns=["allocator", key, "met_percent", "low", "high"])

    where = f" At {fixed}." if fixed else ""
    read = f"Bands: 95 % intervals of the mean over seeds; dotted lines: baselines.{where}"
    return draw_axes(f"load_{safe_name(key)}", f"Compliance against {key}", read, draw, wide=True)


def tradeoff(point: ComparisonPoint, compared: Sequence[str], number: int) -> Drawn:
    """Delivered quality against compliance."""

    def draw(ax: Axes) -> pd.DataFrame:
        rows = []
        for i, (name, f) in enumerate(point.figures.items()):
            x, y = f.compliance, f.delivered_quality
            hollow: dict[str, Any] = {} if name in compared else {"markerfacecolor": "none"}
            ax.errorbar(
                x.mean,
                y.mean,
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
            rows.append((name, x.mean, y.mean))
        label(ax, "met (%)", "quality delivered")
        legend(ax, len(point.figures))
        return pd.DataFrame(rows, columns=["allocator", "met_percent", "quality"])

    read = (
        "Up and right is better; bars are 95 % intervals. Hollow marks: baselines (rate_oracle knows the present "
        f"rate).{_at(point)}"
    )
    return draw_axes(f"tradeoff_{number}", "Quality against compliance", read, draw)


def differences(point: ComparisonPoint, metric: Metric, title: str, unit: str, number: int) -> list[Drawn]:
    """Paired differences with their confidence intervals."""
    verdicts = [v for v in point.verdicts if v.metric == metric]
    if not verdicts:
        return []

    def draw(ax: Axes) -> pd.DataFrame:
        for i, v in enumerate(verdicts):
            shown = v.low > 0 or v.high < 0
            ax.errorbar(
                v.mean,
                i,
                xerr=[[v.mean - v.low], [v.high - v.mean]],
                marker="o",
                markersize=5,
                color=COLOURS[0] if shown else COLOURS[7],
                capsize=3,
            )
        ax.axvline(0, color=INK, linewidth=0.8, linestyle="--")
        ax.set_yticks(range(len(verdicts)), [f"{short(v.first)}\n− {short(v.second)}" for v in verdicts])
        ax.set_ylim(len(verdicts) - 0.5, -0.5)
        label(ax, f"difference in {title} ({unit})", "")
        return pd.DataFrame([v.model_dump() for v in verdicts])

    read = f"Right of the dashed line the first is better; an interval that holds zero shows no difference.{_at(point)}"
    return [
        draw_axes(
            f"differences_{metric}_{number}",
            f"Who is better: {title}",
            read,
            draw,
            height=max(HEIGHT_IN, 1.0 + 0.5 * len(verdicts)),
        )
    ]


def _bars(f: Interval) -> list[list[float]]:
    return [[max(0.0, f.mean - f.low)], [max(0.0, f.high - f.mean)]]


def _at(point: ComparisonPoint) -> str:
    return f" At {point.swept()}." if point.point else ""


def _of_points(found: Comparison, draw: Callable[[ComparisonPoint, int], list[Drawn]]) -> list[Drawn]:
    return [drawn for number, point in enumerate(found.points) for drawn in draw(point, number)]


def all_differences(point: ComparisonPoint, number: int) -> list[Drawn]:
    """Those of every metric."""
    metrics = METRICS.items()
    return [d for metric, title in metrics for d in differences(point, metric, title, UNITS[metric], number)]


FIGURES: dict[str, Callable[[Comparison], list[Drawn]]] = {
    "load": lambda found: load(found.points, found.compared),
    "tradeoff": lambda found: _of_points(found, lambda point, number: [tradeoff(point, found.compared, number)]),
    "differences": lambda found: _of_points(found, all_differences),
}
"""The figures of a comparison. The names of what a figure draws begin with its own."""
