"""A report: one page that needs nothing else, the same as Markdown, every table as CSV, every figure as SVG and PNG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from reports import comparison_figures, drawing, figures
from reports.comparison import METRICS, UNITS, read_comparison
from reports.drawing import Drawn
from reports.figures import jain
from reports.runs import ReportError, Run, read_run

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
    allocators = run.summary["allocators"]
    title = run.summary.get("title") or run.name
    agents = run.ledger.agent_id.nunique()
    subtitle = (
        f"{agents} agents, {len(allocators)} turns with the same arrivals and channel, {len(run.ledger):,} requests"
    )
    return Page(
        title,
        subtitle,
        [
            Section("What came of the requests", notes=[BALANCE], tables=[_main_table(run), _agents_table(run)]),
            *_event_section(run),
            Section("Figures", figures=figures.run_figures([run])),
        ],
        list(_run_facts(run)),
        run.warnings,
    )


BALANCE = (
    "issued = met + late + rejected + failed. Late answers count in credited quality, as the papers count, and not in "
    "delivered quality; bytes are those on the wire."
)


def comparison_page(found: dict[str, Any]) -> Page:
    """The report on a comparison, of what `reports.comparison.read_comparison` found."""
    points, compared = found["points"], found["compared"]
    warnings = list(found["warnings"])
    runs: list[Run] = []
    for folder in found["folders"]:
        try:
            runs.append(read_run(Path(folder)))
        except ReportError as error:
            warnings.append(f"left out of the figures: {error}")
    sections = []
    overview = comparison_figures.load(points, compared)
    if overview:
        sections.append(Section("Across the sweep", figures=overview))
    for number, point in enumerate(points):
        swept = ", ".join(f"{key} {value}" for key, value in point["point"].items())
        drawn: list[Drawn] = []
        if number < MAX_POINTS_DRAWN:
            drawn.append(comparison_figures.tradeoff(point, compared, number))
            for metric, title in METRICS.items():
                drawn += comparison_figures.differences(point, metric, title, UNITS[metric], number)
        sections.append(
            Section(
                swept or "Who is better",
                tables=[_point_table(point, compared, number), *_verdict_table(point, number)],
                figures=drawn,
            )
        )
    if len(points) > MAX_POINTS_DRAWN:
        warnings.append(f"figures of the first {MAX_POINTS_DRAWN} points of {len(points)}; the tables are of all")
    if runs:
        same = [run for run in runs if run.scenario.get("uplink") == runs[0].scenario.get("uplink")]
        seed = same[0].scenario.get("seed")
        note = f"All requests of {len(same)} runs together; the timelines are those of seed {seed}."
        sections.append(Section("Inside the runs", notes=[note], figures=figures.run_figures(same)))
    title = f"{found['scenario']}: {', '.join(compared)}"
    seeds = max((point["seeds"] for point in points), default=0)
    engine = found.get("engine") or "?"
    subtitle = f"{seeds} seeds, {engine}; all allocators had the same arrivals and channels; statistics are over runs"
    facts = [("command", str(found.get("command")))] if found.get("command") else []
    facts += _run_facts(runs[0]) if runs else []
    if runs:
        lateness = [s["lateness_ms"]["max"] or 0.0 for run in runs for s in run.summary["allocators"].values()]
        facts.append(("emulator late, all runs", f"at most {max(lateness):.1f} ms"))
    facts.append(("statistics", STATISTICS))
    return Page(title, subtitle, sections, list(dict(facts).items()), warnings)


STATISTICS = (
    "paired by seed; BCa bootstrap 95 % intervals of mean differences; sign-flip permutation tests with Holm's "
    "correction over all pairs; no winner where the interval holds zero"
)


def write_report(page: Page, out: Path) -> Path:
    """Write the report into a folder, made if it isn't there; returns the page's path.

    Raises:
        ReportError: it can't be written.
    """
    environment = Environment(loader=PackageLoader("reports", "."), autoescape=select_autoescape(["html.j2", "j2"]))
    try:
        for folder in ("figures", "tables"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        html = environment.get_template("page.html.j2").render(page=page)
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


def report_on(folders: Sequence[Path]) -> tuple[dict[str, Any], Page]:
    """A run, a comparison, or several runs of one scenario: what was found, fit for JSON, and the report on it.

    Raises:
        ReportError, reports.comparison.ComparisonError: nothing there can be read.
    """
    if len(folders) == 1 and not (folders[0] / "compare.json").exists():
        run = read_run(folders[0])
        return run.summary | {"warnings": run.warnings}, run_page(run)
    found = read_comparison(*folders)
    return found, comparison_page(found)


def _main_table(run: Run) -> Table:
    columns = ["allocator", "issued", "met", "late", "rejected", "failed", "met %", "rounds all met"]
    columns += ["quality credited", "delivered", "latency p50 ms", "p95", "p99", "sent MB"]
    rows = []
    for name, s in run.summary["allocators"].items():
        rounds = "–" if s["rounds_all_met"] is None else f"{s['rounds_all_met']:.0%} of {s['rounds']}"
        counts = [f"{s[key]:,}" for key in ("issued", "met", "late", "rejected", "failed")]
        latency = [_ms(s["latency_ms"][p]) for p in ("p50", "p95", "p99")]
        quality = [f"{s[key]:.1f}" for key in ("credited_quality", "delivered_quality")]
        rows.append(
            [name, *counts, f"{100 * s['compliance']:.1f}", rounds, *quality, *latency, f"{s['wire_bytes'] / 1e6:,.1f}"]
        )
    return Table("allocators", columns, rows)


def _agents_table(run: Run) -> Table:
    rows = []
    for name, own in run.ledger.groupby("allocator", sort=False):
        met = 100 * (own.status == "met").groupby(own.agent_id).mean()
        worst = met.idxmin()
        solve = run.summary["allocators"][name].get("solve_ms") or {}
        times = [_ms(solve.get("p50"), 2), _ms(solve.get("p99"), 2)]
        switched = f"{figures.switch_share(own):.1f}"
        rows.append([str(name), f"agent {worst}: {met.min():.1f} %", f"{jain(met.to_numpy()):.3f}", switched, *times])
    columns = ["allocator", "worst agent, met", "Jain's index", "modes switched %", "solving p50 ms", "p99"]
    return Table("agents", columns, rows)


def _event_section(run: Run) -> Iterator[Section]:
    if run.events:
        rows = [[e["allocator"], f"{e['at_s']:.1f}", e["kind"], e["text"]] for e in run.events]
        table = Table("events", ["turn", "at s", "what", ""], rows, frozenset({0, 2, 3}))
        yield Section("What was done to it, and what befell it", tables=[table])


def _point_table(point: dict[str, Any], compared: Sequence[str], number: int) -> Table:
    columns = ["allocator", "issued", "met", "late", "rejected", "failed", "met %", "95 %", "quality delivered", "95 %"]
    rows = []
    for name, f in point["figures"].items():
        counts = [f"{f[key]:,}" for key in ("issued", "met", "late", "rejected", "failed")]
        cells = [cell for m in METRICS for cell in (f"{f[m]['mean']:.1f}", f"{f[m]['low']:.1f} to {f[m]['high']:.1f}")]
        rows.append([name if name in compared else f"({name})", *counts, *cells])
    return Table(f"allocators_{number}", columns, rows)


def _verdict_table(point: dict[str, Any], number: int) -> Iterator[Table]:
    if point["verdicts"]:
        rows = []
        for v in point["verdicts"]:
            rows.append([METRICS[v["metric"]], f"{v['first']} / {v['second']}", v["verdict"], f"{v['holm_p']:.4f}"])
        yield Table(
            f"differences_{number}", ["in", "first / second", "the first is", "Holm's p"], rows, frozenset({0, 1, 2})
        )


def _run_facts(run: Run) -> Iterator[tuple[str, str]]:
    facts, summary = run.facts, run.summary
    yield "run folder", _near(run.folder)
    for name in ("command", "started", "engine"):
        if facts.get(name):
            yield name, facts[name]
    if "seed" in run.scenario:
        yield "seed", str(run.scenario["seed"])
    if facts.get("link"):
        reason = f"; {facts['fallback_reason']}" if facts["fallback_reason"] else ""
        yield "link", f"{facts['link']} ({facts['privilege']}){reason}"
    if summary.get("verified"):
        yield "link verified", "; ".join(map(_verified, summary["verified"]["agents"]))
    if facts.get("machine"):
        cores, memory = f"{facts['cpus']} cores", f"{facts['memory_gib']:g} GiB"
        yield "machine", f"{cores}, {memory}, {facts['machine']}, Linux {facts['kernel']}"
        versions = {"python": facts["python"], **facts["versions"]}
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    lateness = [s["lateness_ms"]["p99"] for s in summary["allocators"].values() if s["lateness_ms"]["p99"] is not None]
    if lateness:
        yield (
            "emulator late",
            f"p99 {max(lateness):.1f} ms in the worst turn",
        )
    stolen = [s["stolen"] for s in summary["allocators"].values() if s.get("stolen") is not None]
    if stolen and facts.get("engine") == "live":
        yield "CPU time taken by the host", f"at most {100 * max(stolen):.1f} % in a turn"
    if summary.get("footnote"):
        yield "note", str(summary["footnote"])


def _verified(agent: dict[str, Any]) -> str:
    """What was measured of one agent's link before the run."""
    rate = f"{agent['achieved_mbps']:.2f} of {agent['asked_mbps']:.2f} Mbit/s, " if agent["achieved_mbps"] else ""
    return f"agent {agent['agent']}: {rate}round trip {agent['round_trip_ms']:.2f} ms"


def _near(folder: Path) -> str:
    """A folder as one would name it here; of others, what tells them apart: where they are is nobody's business."""
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
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def _ms(value: Any, digits: int = 0) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:,.{digits}f}"
