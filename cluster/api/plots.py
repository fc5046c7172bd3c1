"""The figures of the reports, as matplotlib axes: `results.plot.slack()`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from cluster.api.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from reports.drawing import Drawn

Figures: TypeAlias = "dict[str, Callable[[], list[Drawn]]]"
"""What draws each figure, by its name."""


class Plots:
    """One method for each figure; `dir` lists them.

    A figure is made by pyplot: notebooks show it, and in a script `matplotlib.pyplot.show` does. A method returns its
    axes (an array where it has several); with several figures of a kind it takes the name of one, such as an allocator.

    Raises:
        InputError: there is nothing to draw, or no figure of that name.
    """

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures

    def __dir__(self) -> list[str]:
        return sorted(self._figures())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        figures = self._figures()
        if name not in figures:
            raise AttributeError(f"no figure {name!r}; there are {', '.join(figures)}")
        return partial(_plot, name, figures[name])


def _plot(figure: str, make: Callable[[], "list[Drawn]"], of: object = None) -> "Axes | Any":
    from matplotlib import pyplot

    found, _ = _chosen(figure, make(), of).on(pyplot.figure)
    if len(found.axes) == 1:
        return found.axes[0]
    import numpy as np

    return np.array(found.axes, dtype=object)


def _chosen(figure: str, drawn: "Sequence[Drawn]", of: object) -> "Drawn":
    """The first figure, or the one whose name says that it is of `of`."""
    from reports.drawing import safe_name

    if not drawn:
        raise InputError(f"{figure}: these results have nothing to draw in it")
    names = [each.name.removeprefix(f"{figure}_") for each in drawn]
    if of is None:
        return drawn[0]
    wanted = safe_name(str(of))
    if wanted in names:
        return drawn[names.index(wanted)]
    for name, each in zip(names, drawn, strict=True):
        if name.startswith(f"{wanted}_"):  # a metric, at the first point of a sweep
            return each
    raise InputError(f"{figure}: none of {str(of)!r}; there are {', '.join(names)}")
