"""A report: one page that needs nothing else, the same as Markdown, every table as CSV, every figure as SVG and PNG."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from netem.checks.verify import AgentVerified
from netem.fairness import jain_index
from reports import comparison_figures, drawing, figures, files, metrics
from reports.comparison import METRICS, read_comparison
from reports.drawing import Drawn
from reports.runs import ReportError, Run, read_run
from reports.schema import Comparison, ComparisonPoint, SolveGaps, Summary
from reports.table import SERVING_COLUMNS, rounds_shown, serving_shown
from reports.terminal import printable

PAGE, MARKDOWN = "report.html", "report.md"
MAX_POINTS_DRAWN = 12  # of a sweep, with figures of their own


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; `text` are columns of words."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Drawn] = ()


@dataclass(frozen=True)
class Page:
    """Everything that a report says."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str] = field(default=())


def run_page(run: Run) -> Page:
    """The report on one run."""
    title = run.summary.title or run.name
    agents = run.ledger.agent_id.nunique()
    subtitle = (
        f"{agents} agents, {len(run.allocators)} turns with the same arrivals and channel, {len(run.ledger):,} requests"
    )
    return Page(
        title,
        subtitle,
        [
            Section(
                "What came of the requests",
                notes=[BALANCE],
                tables=[_main_table(run), *_serving_table(run), _agents_table(run)],
            ),
            *_event_section(run),
            *_node_section(run),
            Section("Figures", figures=figures.run_figures([run])),
        ],
        list(_run_facts(run)),
        run.warnings,
    )


BALANCE = (
    "scheduled = met + late + rejected + failed. Late answers count in credited quality, as the papers count, and not "
    "in delivered quality; bytes are those on the wire."
)


NETWORK = (
    "Rates and round trips of the real network between each node and the station, before the run and at their worst in "
    "it; below the uplink's rate this network, and not the emulated one, would be the link."
)


def comparison_page(found: Comparison) -> Page:
    """The report on a comparison."""
    points, compared = found.points, found.compared
    warnings = list(found.warnings)
    runs: list[Run] = []
    for folder in found.folders:
        try:
            runs.append(read_run(Path(folder)))
        except ReportError as error:
            warnings.append(f"left out of the figures: {error}")
    overview = comparison_figures.load(points, compared)
    sections = [Section("Across the sweep", figures=overview)] if overview else []
    sections += [_point_section(point, compared, number) for number, point in enumerate(points)]
    if len(points) > MAX_POINTS_DRAWN:
        warnings.append(f"figures of the first {MAX_POINTS_DRAWN} points of {len(points)}; the tables are of all")
    if runs:
        same = [run for run in runs if run.scenario.get("uplink") == runs[0].scenario.get("uplink")]
        seed = same[0].scenario.get("seed")
        note = f"All requests of {len(same)} runs together; the timelines are those of seed {seed}."
        sections.append(Section("Inside the runs", notes=[note], figures=figures.run_figures(same)))
    title = f"{found.scenario}: {', '.join(compared)}"
    seeds = max((point.seeds for point in points), default=0)
    subtitle = (
        f"{seeds} seeds, {found.engine}; all allocators had the same arrivals and channels; statistics are over runs"
    )
    facts = [("command", found.command)] if found.command else []
    facts += _run_facts(runs[0]) if runs else []
    if runs:
        lateness = [s.lateness_ms.max or 0.0 for run in runs for s in run.allocators.values()]
        facts.append(("emulator late, all runs", f"at most {max(lateness):.1f} ms"))
    facts.append(("statistics", STATISTICS))
    return Page(title, subtitle, sections, list(dict(facts).items()), warnings)


def _point_section(point: ComparisonPoint, compared: Sequence[str], number: int) -> Section:
    """Tables of one point of a sweep and, for the first ones, figures."""
    drawn: list[Drawn] = []
    if number < MAX_POINTS_DRAWN:
        drawn.append(comparison_figures.tradeoff(point, compared, number))
        drawn += comparison_figures.all_differences(point, number)
    tables = [_point_table(point, compared, number), *_verdict_table(point, number)]
    return Section(point.swept() or "Who is better", tables=tables, figures=drawn)


STATISTICS = (
    "paired by seed; BCa bootstrap 95 % intervals of mean differences; sign-flip permutation tests with Holm's "
    "correction over all pairs; no winner where the interval holds zero"
)


def write_report(page: Page, out: Path) -> Path:
    """Write the report into a folder, made if it isn't there; returns the page's path.

    Raises:
        ReportError: it can't be written.
    """
    try:
        for folder in ("figures", "tables"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        html = _templates().get_template("page.html.j2").render(page=page)
        (out / PAGE).write_text(html, encoding="utf-8")
        (out / MARKDOWN).write_text("\n".join(_markdown(page)) + "\n", encoding="utf-8")
        for section in page.sections:
            for table in section.tables:
                pd.DataFrame(table.rows, columns=list(table.columns)).to_csv(
                    out / f"tables/{table.name}.csv", index=False
                )
            for drawn in section.figures:
                svg = drawn.svg.replace("var(--grid)", drawing.GRID).replace("currentColor", drawing.INK)
                (out / f"figures/{drawn.name}.svg").write_text(svg, encoding="utf-8")
                (out / f"figures/{drawn.name}.png").write_bytes(drawn.png)
                if drawn.data is not None:
                    drawn.data.to_csv(out / f"figures/{drawn.name}.csv", index=False)
    except OSError as error:
        raise ReportError(f"{out}: {error.strerror}") from None
    return out / PAGE


def _templates() -> Environment:
    return Environment(loader=PackageLoader("reports", "."), autoescape=select_autoescape(["html.j2", "j2"]))


def run_fragment(run: Run) -> str:
    """A run's main table and warnings as HTML, for notebooks."""
    return _fragment(run.summary.title or run.name, [("", _main_table(run))], run.warnings, run.folder)


def comparison_fragment(found: Comparison, folder: Path) -> str:
    """A comparison's figures and verdicts as HTML, for notebooks."""
    tables: list[tuple[str, Table]] = []
    for number, point in enumerate(found.points):
        tables += [(point.swept(), _point_table(point, found.compared, number))]
        tables += [("", table) for table in _verdict_table(point, number)]
    return _fragment(f"{found.scenario}: {', '.join(found.compared)}", tables, found.warnings, folder)


def _fragment(title: str, tables: Sequence[tuple[str, Table]], warnings: Sequence[str], folder: Path) -> str:
    fragment = _templates().get_template("fragment.html.j2")
    return fragment.render(title=title, tables=tables, warnings=warnings, folder=folder)


def report_on(folders: Sequence[Path]) -> tuple[Summary | Comparison, Page]:
    """Read a run, a comparison, or several runs of one scenario, and make the report on it.

    Raises:
        ReportError, reports.comparison.ComparisonError: nothing there can be read.
    """
    if len(folders) == 1 and not (folders[0] / files.COMPARISON).exists():
        run = read_run(folders[0])
        return run.summary, run_page(run)
    found = read_comparison(*folders)
    return found, comparison_page(found)


def _main_table(run: Run) -> Table:
    columns = ["allocator", "scheduled", "issued", "met", "late", "rejected", "failed", "met %", "rounds all met"]
    columns += ["quality credited", "delivered", "latency p50 ms", "p95", "p99", "sent MB"]
    rows = []
    for name, s in run.allocators.items():
        counts = [f"{count:,}" for count in s.counts().values()]
        latency = [_ms(ms) for ms in (s.latency_ms.p50, s.latency_ms.p95, s.latency_ms.p99)]
        quality = [f"{value:.1f}" for value in (s.credited_quality, s.delivered_quality)]
        met = f"{100 * s.compliance:.1f}"
        rows.append([name, *counts, met, rounds_shown(s), *quality, *latency, f"{s.wire_bytes / 1e6:,.1f}"])
    return Table("allocators", columns, rows)


def _serving_table(run: Run) -> Iterator[Table]:
    if any(s.serving is not None for s in run.allocators.values()):
        rows = [[name, *serving_shown(s)] for name, s in run.allocators.items()]
        yield Table("serving", ["allocator", *SERVING_COLUMNS], rows)


def _agents_table(run: Run) -> Table:
    rows = []
    for name, own in run.ledger.groupby("allocator", sort=False):
        met = metrics.compliance_by_agent(own)
        worst = met.idxmin()
        solve = run.allocators[str(name)].solve_ms
        times = [_ms(solve.p50, 2), _ms(solve.p99, 2), *_gaps(run.allocators[str(name)].solve_gaps)]
        switched = f"{figures.switch_share(own):.1f}"
        rows.append(
            [str(name), f"agent {worst}: {met.min():.1f} %", f"{jain_index(met.tolist()):.3f}", switched, *times]
        )
    columns = ["allocator", "worst agent, met", "Jain's index", "modes switched %", "solving p50 ms", "p99"]
    columns += ["most weight proved %", "gap to the static optimum p99 %", "at most %"]
    return Table("agents", columns, rows)


def _gaps(gaps: SolveGaps) -> list[str]:
    """Solves that are proved to meet the most weight, and bounds on what the others' quality falls short."""
    if gaps.met_proved is None or not gaps.curve:
        return ["–"] * 3
    return [f"{100 * gaps.met_proved:.1f}", f"{100 * gaps.curve[99]:.3f}", f"{100 * gaps.curve[100]:.3f}"]


def _event_section(run: Run) -> Iterator[Section]:
    if run.events:
        rows = [[e.allocator, f"{e.at_s:.1f}", e.kind, e.text] for e in run.events]
        table = Table("events", ["turn", "at s", "what", ""], rows, frozenset({0, 2, 3}))
        yield Section("What was done to it, and what befell it", tables=[table])


def _node_section(run: Run) -> Iterator[Section]:
    """Nodes beside the station, of a run over several."""
    if not run.summary.nodes:
        return
    rows = []
    for node in run.summary.nodes:
        before = [_ms(node.up_mbps), _ms(node.down_mbps), _ms(node.round_trip_ms, 2)]
        during = [_ms(node.least_mbps), _ms(node.most_round_trip_ms, 2)]
        clock = [_ms(node.clock_error_ms, 3), _ms(node.clock_uncertainty_ms, 3)]
        rows.append([f"{node.address} ({node.hostname})", str(node.hosts), str(node.workers), *before, *during, *clock])
    columns = ["node", "hosts", "workers", "Mbit/s up", "down", "round trip ms", "least Mbit/s in the run"]
    columns += ["longest round trip ms", "clock's error ms", "uncertain ms"]
    table = Table("nodes", columns, rows)
    counted = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in run.summary.relay.items())
    yield Section("The nodes, and the network underneath", notes=[NETWORK, f"Relay: {counted}."], tables=[table])


def _point_table(point: ComparisonPoint, compared: Sequence[str], number: int) -> Table:
    columns = [
        "allocator",
        "scheduled",
        "issued",
        "met",
        "late",
        "rejected",
        "failed",
        "met %",
        "95 %",
        "quality delivered",
        "95 %",
    ]
    rows = []
    for name, f in point.figures.items():
        counts = [f"{count:,}" for count in f.counts().values()]
        means = f.compliance, f.delivered_quality
        cells = [cell for m in means for cell in (f"{m.mean:.1f}", f"{m.low:.1f} to {m.high:.1f}")]
        regret = point.regret(name)
        below = [] if regret is None else [f"{regret[0]:.1f}", f"{regret[1]:.1f}"]
        rows.append([name if name in compared else f"({name})", *counts, *cells, *below])
    if point.bound is not None:
        columns += ["below the bound: met", "quality"]
        met, quality = f"{point.bound.compliance:.1f}", f"{point.bound.delivered_quality:.1f}"
        rows.append(["(bound)", *[""] * 6, met, "", quality, "", "", ""])
    return Table(f"allocators_{number}", columns, rows)


def _verdict_table(point: ComparisonPoint, number: int) -> Iterator[Table]:
    if point.verdicts:
        rows = [[METRICS[v.metric], f"{v.first} / {v.second}", v.verdict, f"{v.holm_p:.4f}"] for v in point.verdicts]
        yield Table(
            f"differences_{number}", ["in", "first / second", "the first is", "Holm's p"], rows, frozenset({0, 1, 2})
        )


def _run_facts(run: Run) -> Iterator[tuple[str, str]]:
    yield "run folder", _near(run.folder)
    if facts := run.facts:
        yield from (("command", facts.command), ("started", facts.started), ("engine", facts.engine))
    if "seed" in run.scenario:
        yield "seed", str(run.scenario["seed"])
    if facts and facts.link:
        reason = f"; {facts.fallback_reason}" if facts.fallback_reason else ""
        yield "link", f"{facts.link} ({facts.privilege}){reason}"
    if verified := run.summary.verified:
        yield "link verified", "; ".join(map(_verified, verified.agents))
    if facts:
        cores, memory = f"{facts.cpus} cores", f"{facts.memory_gib:g} GiB"
        yield "machine", f"{cores}, {memory}, {facts.machine}, Linux {facts.kernel}"
        versions = {"python": facts.python, **facts.versions}
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    turns = run.allocators.values()
    if lateness := [s.lateness_ms.p99 for s in turns if s.lateness_ms.p99 is not None]:
        yield "emulator late", f"p99 {max(lateness):.1f} ms in the worst turn"
    if facts and facts.engine == "live" and turns:
        yield "CPU time taken by the host", f"at most {100 * max(s.stolen for s in turns):.1f} % in a turn"
    if run.summary.footnote:
        yield "note", run.summary.footnote


def _verified(agent: AgentVerified) -> str:
    """What was measured of one agent's link before the run."""
    rate = ""
    if agent.achieved_mbps and agent.asked_mbps:
        rate = f"{agent.achieved_mbps:.2f} of {agent.asked_mbps:.2f} Mbit/s, "
    return f"agent {agent.agent}: {rate}round trip {agent.round_trip_ms:.2f} ms"


def _near(folder: Path) -> str:
    """A folder's path relative to the working directory; of folders elsewhere the name alone, to keep paths private."""
    folder = folder.resolve()
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else f"…/{folder.name}"


def _markdown(page: Page) -> Iterator[str]:
    plain = _cell
    yield f"# {plain(page.title)}\n\n{plain(page.subtitle)}\n"
    yield from (f"> **{plain(line)}**\n" for line in page.warnings)
    for section in page.sections:
        yield f"## {plain(section.title)}\n"
        yield from (f"{plain(line)}\n" for line in section.notes)
        for table in section.tables:
            yield f"| {' | '.join(map(plain, table.columns))} |"
            yield "|" + "|".join("---" if i in table.text else "---:" for i in range(len(table.columns))) + "|"
            yield from (f"| {' | '.join(map(plain, row))} |" for row in table.rows)
            yield ""
        yield from (f"![{plain(d.title)}](figures/{d.name}.png)\n\n{plain(d.read)}\n" for d in section.figures)
    yield "## How it was run\n"
    yield from (f"- {name}: {plain(value)}" for name, value in page.facts)


def _cell(text: str) -> str:
    """Text that means itself in Markdown, in one line."""
    line = printable(" ".join(str(text).split())).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)


def _ms(value: Any, digits: int = 0) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:,.{digits}f}"
