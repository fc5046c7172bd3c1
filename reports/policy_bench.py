"""Reads `scout bench policies`: means over seeds, regret, the verdict in one line, tables, a page with heat maps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table as Shown

from reports.drawing import WIDE_IN, Drawn, draw_figure
from reports.page import Page, Section, Table
from reports.schema import PolicyBench, PolicyCell

TOLERANCE = 0.1  # points, or of quality: less is no loss
Measure = Literal["met", "delivered"]
MEASURES: dict[Measure, str] = {"met": "met (points)", "delivered": "delivered quality"}


@dataclass(frozen=True)
class CellResult:
    """One cell over its seeds.

    Attributes:
        means: of every policy, by measure; bound: likewise, None if a run has none.
    """

    cell: PolicyCell
    seeds: int
    requests: int
    means: dict[str, dict[Measure, float]]
    bound: dict[Measure, float] | None

    def best(self, names: Sequence[str], measure: Measure) -> tuple[str, float] | None:
        """The best of these policies; None if none of them can serve the cell."""
        there = [(self.means[name][measure], name) for name in names if name in self.means]
        return max(there)[::-1] if there else None


def results(document: PolicyBench) -> list[CellResult]:
    """Every cell that has been run at least once."""
    found = []
    for number, cell in enumerate(document.cells):
        units = [unit for unit in document.units if unit.cell == number]
        if not units:
            continue
        means: dict[str, dict[Measure, float]] = {
            name: {
                "met": float(np.mean([unit.scores[name].met for unit in units])),
                "delivered": float(np.mean([unit.scores[name].delivered for unit in units])),
            }
            for name in document.policies
            if all(name in unit.scores for unit in units)
        }
        bounds = [unit.bound for unit in units if unit.bound is not None]
        bound: dict[Measure, float] | None = None
        if len(bounds) == len(units):
            bound = {
                "met": float(np.mean([b.compliance for b in bounds])),
                "delivered": float(np.mean([b.delivered_quality for b in bounds])),
            }
        found.append(CellResult(cell, len(units), sum(unit.requests for unit in units), means, bound))
    return found


def losses(document: PolicyBench, measure: Measure) -> list[tuple[CellResult, str, float]]:
    """Cells in which the judged policy is below the best trivial one by more than the tolerance; the worst first."""
    found = []
    for result in results(document):
        best = result.best(document.trivial, measure)
        if best is not None and document.judged in result.means:
            short = best[1] - result.means[document.judged][measure]
            if short > TOLERANCE:
                found.append((result, best[0], short))
    return sorted(found, key=lambda loss: -loss[2])


def verdict(document: PolicyBench) -> str:
    """Whether the judged policy is below the best trivial one anywhere, in one line."""
    cells, parts = len(results(document)), []
    for measure in MEASURES:
        found = losses(document, measure)
        worst = ""
        if found:
            result, best, short = found[0]
            worst = f" (most, by {short:.2f} below {best}: {result.cell.name()})"
        parts.append(f"in {measure} in {len(found)} of {cells} cells{worst}")
    return f"{document.judged} is more than {TOLERANCE:g} below the best trivial policy " + ", ".join(parts)


def regret(document: PolicyBench) -> str:
    """The judged policy's mean regret against the bound, in one line; empty where no cell has a bound."""
    pairs = [(r.bound, r.means[document.judged]) for r in results(document) if r.bound and document.judged in r.means]
    if not pairs:
        return ""
    means = {m: float(np.mean([bound[m] - own[m] for bound, own in pairs])) for m in MEASURES}
    shown = f"{means['met']:.2f} met, {means['delivered']:.2f} delivered"
    return f"mean regret of {document.judged} against the bound: {shown}"


def partial(document: PolicyBench) -> list[str]:
    """What is missing, in at most one line."""
    made, planned = len(document.units), document.planned()
    again = "; the same command with the same --out goes on"
    return [f"PARTIAL: {made} of {planned} runs were made{again}"] if made < planned else []


def _cells(document: PolicyBench) -> Iterator[list[str]]:
    for result in results(document):
        row = [result.cell.name(), f"{result.requests:,}"]
        for name in document.policies:
            own = result.means.get(name)
            row.append("–" if own is None else f"{own['met']:.1f} / {own['delivered']:.1f}")
        row.append("–" if result.bound is None else f"{result.bound['met']:.1f} / {result.bound['delivered']:.1f}")
        yield row


def bench_table(document: PolicyBench) -> Shown:
    """For a terminal: met and delivered of every policy in every cell, and the bound."""
    seeds = len(document.seeds)
    shown = Shown(
        title=f"met % / delivered, {seeds} seeds of {document.duration_s:g} s; {document.machine.line()}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("cell")
    for name in (*document.policies, "bound"):
        shown.add_column(name.replace("_", "\n"), justify="right", no_wrap=True, min_width=11)
    for cell, _, *values in _cells(document):
        shown.add_row(cell, *(value.replace(" / ", " ") for value in values))
    return shown


NOTE = (
    "Trivial policies are {trivial}. Regret is what {judged} is below the other: positive where it is worse. The bound "
    "knows all arrivals and the channel, and may divide work: no allocator can have it all (docs/allocation.md)."
)


def bench_page(document: PolicyBench) -> Page:
    """The report: verdict, heat maps, all cells."""
    note = NOTE.format(trivial=", ".join(document.trivial) or "none of those compared", judged=document.judged)
    notes = [text for text in (verdict(document) + ".", regret(document), note) if text]
    columns = ["cell", "requests", *document.policies, "bound"]
    table = Table("cells", columns, list(_cells(document)))
    figures = [drawn for measure in MEASURES for drawn in _heat_maps(document, measure)]
    facts = [("command", document.command), ("machine", document.machine.line())]
    facts += [(name, f"a file of the user, {path.rpartition('/')[2]}") for name, path in document.files.items()]
    return Page(
        f"Policies in {len(document.cells)} cells",
        f"{len(document.seeds)} seeds of {document.duration_s:g} s, simulated; the same arrivals and channels for all",
        [
            Section(f"Is {document.judged} ever worse than something trivial?", notes=notes, figures=figures),
            Section("All cells: met % / delivered quality", tables=[table]),
        ],
        facts,
        partial(document),
    )


def _heat_maps(document: PolicyBench, measure: Measure) -> Iterator[Drawn]:
    """Regret of the judged policy in every cell, against the best trivial policy and against the bound."""
    judged = document.judged
    rows: dict[str, dict[str, tuple[float | None, float | None]]] = {}
    for result in results(document):
        cell = result.cell
        loss = f", loss {cell.loss_percent:g} %" if cell.loss_percent else ""
        line = f"{cell.uplink}, load {cell.cloud_load:g}{loss}"
        column = f"{cell.workload}\n{'prompts' if cell.prompts else 'caches'}"
        best, own = result.best(document.trivial, measure), result.means.get(judged)
        against = (
            None if best is None or own is None else best[1] - own[measure],
            None if result.bound is None or own is None else result.bound[measure] - own[measure],
        )
        rows.setdefault(line, {})[column] = against
    if not rows:
        return

    def draw(figure: Figure) -> pd.DataFrame:
        lines, columns = list(rows), list(dict.fromkeys(column for row in rows.values() for column in row))
        drawn = []
        for number, (axes, title) in enumerate(
            zip(figure.subplots(1, 2, sharey=True), ("against the best trivial", "against the bound"), strict=True)
        ):
            grid = np.array(
                [[_number(rows[line].get(column, (None, None))[number]) for column in columns] for line in lines]
            )
            axes.imshow(grid, cmap="RdYlGn_r", vmin=-10, vmax=10, aspect="auto")
            axes.grid(False)
            axes.set_title(title, fontsize=9)
            axes.set_xticks(range(len(columns)), columns, fontsize=7)
            axes.set_yticks(range(len(lines)), lines, fontsize=7)
            for (y, x), value in np.ndenumerate(grid):
                if np.isfinite(value):
                    axes.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=7, color="#1b1c1d")
                    drawn.append((lines[y], columns[x].replace("\n", ", "), title, float(value)))
        return pd.DataFrame(drawn, columns=["uplink", "workload", "regret", measure])

    read = f"What {judged} is below, in {MEASURES[measure]}: green where it is better, red where it is worse."
    height = 1.4 + 0.24 * len(rows)
    yield draw_figure(f"regret_{measure}", f"Regret: {MEASURES[measure]}", read, draw, WIDE_IN, height, True)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
