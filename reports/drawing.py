"""Drawing of figures: style, theme colours and common helpers."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Drawing colours; the SVG replaces them by variables of the page's theme, PNGs keep them.
INK, GRID = "#1b1c1d", "#d4d5d6"
THEMED = {INK: "currentColor", GRID: "var(--grid)"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7f6bb3", "#8c8c8c")  # Okabe and Ito's
MARKERS = "osD^vPX*"
WIDTH_IN, HEIGHT_IN = 5.4, 3.3
WIDE_IN = 11.2
MAX_POINTS = 1500  # of individual marks; more are sampled, and the figure says so

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may contain $
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
    """A figure, drawn when it is asked for.

    Attributes:
        name: used in file names; title; read: one line on how to read the figure.
        draw: draws into an empty figure; returns the drawn data, None if it is the ledger itself.
        width, height: in inches.
    """

    name: str
    title: str
    read: str
    draw: Callable[[Figure], pd.DataFrame | None]
    width: float
    height: float
    wide: bool = False

    @property
    def svg(self) -> str:
        """For the page, in the colours of its theme."""
        return self._rendered[0]

    @property
    def png(self) -> bytes:
        """For other uses."""
        return self._rendered[1]

    @property
    def data(self) -> pd.DataFrame | None:
        """The drawn data, None if it is the ledger itself."""
        return self._rendered[2]

    def on(self, make: Callable[..., Figure] = Figure) -> tuple[Figure, pd.DataFrame | None]:
        """The figure, in the style of reports, and the drawn data.

        Args:
            make: such as `matplotlib.pyplot.figure`.
        """
        with matplotlib.rc_context(STYLE):
            figure = make(figsize=(self.width, self.height))
            return figure, self.draw(figure)

    @cached_property
    def _rendered(self) -> tuple[str, bytes, pd.DataFrame | None]:
        figure, data = self.on()
        rc: Any = STYLE | {"svg.hashsalt": self.name}
        # The salt makes ids unique in a page, and reproducible for the same figure.
        with matplotlib.rc_context(rc):
            svg, png = io.StringIO(), io.BytesIO()
            figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            figure.savefig(png, format="png", dpi=150, facecolor="white", metadata={"Software": None})
        return _themed(svg.getvalue(), self.title), png.getvalue(), data


def draw_axes(
    name: str,
    title: str,
    read: str,
    draw: Callable[[Axes], pd.DataFrame],
    height: float = HEIGHT_IN,
    wide: bool = False,
) -> Drawn:
    return draw_figure(
        name, title, read, lambda figure: draw(figure.subplots()), WIDE_IN if wide else WIDTH_IN, height, wide
    )


def draw_figure(
    name: str, title: str, read: str, draw: Callable[[Figure], pd.DataFrame], width: float, height: float, wide: bool
) -> Drawn:
    return Drawn(safe_name(name), title, read, draw, width, height, wide)


def _themed(svg: str, title: str) -> str:
    """The bare <svg> element: no fixed size, theme colours, and an accessible label."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    for drawn, themed in THEMED.items():
        svg = svg.replace(drawn, themed)
    return svg


def line(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % 8], "linewidth": 1.5, "linestyle": ("-", "--")[number // 8 % 2]}


def shade(number: int) -> str:
    return COLOURS[number % 8] if number < 8 else matplotlib.colors.to_hex(matplotlib.colormaps["tab20"](number % 20))


def label(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def legend(ax: Axes, entries: int) -> None:
    if entries > 1:
        ax.figure.legend(loc="outside lower center", ncols=2 if entries > 3 else entries)


def thinned(count: int, most: int = MAX_POINTS) -> np.ndarray:
    """At most `most` evenly spaced indices below `count`, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)) if count else np.zeros(0, int)


def short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"


def safe_name(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)
