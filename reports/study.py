"""The report on a study of real models: what each case costs and loses, with paired statistics over contexts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pyarrow import parquet

from configs.reading import FileRefused, check_file
from reports import files
from reports.drawing import COLOURS, INK, MARKERS, Drawn, draw_axes, label, legend, short
from reports.machine import kernel_series
from reports.page import Page, Section, Table
from reports.runs import MAX_TABLE_BYTES, ReportError
from reports.schema import DocumentUnreadable, StudyFacts
from reports.statistics import clustered_intervals, clustered_ps, detectable, holm

BASELINES = {"edge": "full", "cloud": "prompt"}
COLUMNS = {
    "example", "context", "length", "case", "side", "selection", "retention", "quantizer", "way", "f1", "exact", "nll",
    "answer_tokens", "context_tokens", "kept", "payload_bytes", "overlap", "beyond_chance", "answer_kept",
}  # fmt: skip
SIGNIFICANT = 0.05
MAX_LABELS = 14  # in a figure


@dataclass(frozen=True)
class Measured:
    """Mean and 95 % interval; difference (to the baseline) with its interval, Holm's p, and what could be told."""

    mean: float
    low: float
    high: float
    difference: float = math.nan
    difference_low: float = math.nan
    difference_high: float = math.nan
    p: float = math.nan
    detectable: float = math.nan


@dataclass(frozen=True)
class CaseFigures:
    """One case of one length; F1 and exact match in percent, NLL in nats a token."""

    case: str
    side: str
    count: int
    payload_bytes: float
    kept: float
    f1: Measured
    exact: Measured
    nll: Measured
    answer_tokens: float
    answer_kept: float
    overlap: float
    beyond_chance: float


@dataclass(frozen=True)
class StudyResults:
    """A study's folder, read.

    Attributes:
        outcomes: a row for each example and case, as `models.study.rows.Outcome` has them.
        figures: of every case, by length of the context (0 for given contexts).
        examples, contexts: how many.
    """

    folder: Path
    facts: StudyFacts
    outcomes: pd.DataFrame
    figures: dict[int, list[CaseFigures]]
    examples: int
    contexts: int

    def find(self, case: str, length: int) -> CaseFigures | None:
        return next((f for f in self.figures.get(length, []) if f.case == case), None)


def read_study(folder: Path) -> StudyResults:
    """Raises ReportError if the folder isn't a study or has no outcomes."""
    try:
        facts = StudyFacts.read(folder / files.STUDY)
        path = folder / files.STUDY_RESULTS
        check_file(path, MAX_TABLE_BYTES)
        table = parquet.read_table(path)
    except FileNotFoundError as error:
        raise ReportError(f"{folder} is no study: there is no {Path(str(error.filename)).name}") from None
    except (OSError, DocumentUnreadable, FileRefused, ValueError) as error:
        raise ReportError(f"{folder}: {' '.join(str(error).split())[:200]}") from None
    if missing := COLUMNS - set(table.column_names):
        raise ReportError(f"{folder}: {files.STUDY_RESULTS} has no {', '.join(sorted(missing))}")
    outcomes: pd.DataFrame = table.select(sorted(COLUMNS)).to_pandas().drop_duplicates(["example", "case"])
    if outcomes.empty:
        raise ReportError(f"{folder} has no outcomes yet")
    outcomes["context"] = outcomes.groupby(["length", "context"]).ngroup()  # numbered anew in each length
    figures = {int(str(length)): figures_of(part) for length, part in outcomes.groupby("length")}
    return StudyResults(folder, facts, outcomes, figures, outcomes.example.nunique(), outcomes.context.nunique())


def figures_of(outcomes: pd.DataFrame) -> list[CaseFigures]:
    """The figures of each case, in the order of the outcomes.

    Statistics are over the examples that every case of the same side has, paired, with whole contexts as units.
    """
    found = []
    for side in [s for s in BASELINES if s in set(outcomes.side)]:
        mine = outcomes[outcomes.side == side]
        cases = list(dict.fromkeys(mine.case))
        wide = {key: mine.pivot(index="example", columns="case", values=key)[cases].dropna() for key in _SCALES}
        common = wide["nll"].index
        if not len(common):
            continue
        contexts = mine.drop_duplicates("example").set_index("example").context[common].to_numpy()
        measured = {key: _measured(wide[key].loc[common] * _SCALES[key], contexts, BASELINES[side]) for key in _SCALES}
        means = mine.groupby("case")
        for case in cases:
            own = means.get_group(case)
            share = (own.kept / own.context_tokens.clip(lower=1)).mean()
            scouted = own[own.overlap >= 0]  # elsewhere -1 stands for both
            averages = [own.answer_tokens.mean(), own.answer_kept[own.answer_kept >= 0].mean()]
            averages += [scouted.overlap.mean(), scouted.beyond_chance.mean()]
            figures = measured["f1"][case], measured["exact"][case], measured["nll"][case]
            sent = float(own.payload_bytes.median())
            found.append(CaseFigures(case, side, len(common), sent, float(share), *figures, *map(float, averages)))
    return found


_SCALES = {"f1": 100.0, "exact": 100.0, "nll": 1.0}


def _measured(values: pd.DataFrame, contexts: np.ndarray, baseline: str) -> dict[str, Measured]:
    rng = np.random.default_rng(0)
    means = clustered_intervals(values.to_numpy(), contexts, rng)
    if baseline not in values:
        return {str(case): Measured(*row) for case, row in zip(values, means, strict=True)}
    differences = values.sub(values[baseline], axis=0)
    spans = clustered_intervals(differences.to_numpy(), contexts, np.random.default_rng(0))
    others = [case for case in values if case != baseline]
    ps = dict(zip(others, holm(clustered_ps(differences[others].to_numpy(), contexts, rng)), strict=True))
    found = {}
    for case, row, span in zip(values, means, spans, strict=True):
        found[str(case)] = Measured(row[0], row[1], row[2])
        if case in ps:
            told = detectable(differences[case], contexts)
            found[str(case)] = Measured(row[0], row[1], row[2], span[0], span[1], span[2], ps[case], told)
    return found


def study_page(study: StudyResults) -> Page:
    """The report on a study."""
    facts = study.facts
    called = short_name(facts.model, facts.cloud_model)
    sections = []
    for length, figures in study.figures.items():
        where = f", contexts of {length:,} tokens" if length else ""
        sections += list(_sections(study, length, figures, where))
    warnings = []
    if facts.state != "complete":
        warnings.append(f"{progress_of(study)}: it was interrupted; the same command goes on with it")
    if facts.left_out:
        warnings.append(f"{len(facts.left_out)} examples left out, the first: {facts.left_out[0]}")
    subtitle = (
        f"{study.examples:,} examples on {study.contexts:,} contexts ({facts.examples}, seed {facts.seed}), greedy "
        f"answers of at most {facts.max_new_tokens} tokens, {facts.dtype} on {facts.gpu or 'CPU'}"
    )
    return Page(f"{called} on {facts.task}", subtitle, sections, list(_facts(facts)), warnings)


def progress_of(study: StudyResults) -> str:
    """The state, and how many examples there are; of a partial study, of how many."""
    facts = study.facts
    wanted = facts.samples * max(1, len(facts.lengths))
    of = f" of {wanted:,}" if facts.state == "partial" else ""
    return f"{facts.state}, {study.examples:,}{of} examples"


NOTES = (
    "Differences are to the whole cache (full) of the same model, or to its whole prompt; paired by example, bootstrap "
    "over contexts, p by Holm over the table; * shows p up to 5 %. NLL is of the reference answer, in nats a token: "
    "lower is better."
)


def _sections(study: StudyResults, length: int, figures: Sequence[CaseFigures], where: str) -> Iterator[Section]:
    facts = study.facts
    for side in BASELINES:
        mine = [f for f in figures if f.side == side]
        if not mine:
            continue
        model = facts.model if side == "edge" else facts.cloud_model or ""
        table = _main_table(mine, facts.measure, f"cases_{side}_{length}")
        power = _power(mine, facts.measure)
        yield Section(
            f"{short_name(model)}{where}", notes=[NOTES, power], tables=[table], figures=_figures(mine, facts, length)
        )
    scouted = [f for f in figures if f.case.startswith("scout:")]
    if scouted:
        yield Section(f"Scouting{where}", notes=[SCOUTING], tables=[_scout_table(scouted, figures, length)])


SCOUTING = (
    "The cloud's cache, pruned by the edge's positions (scout) or by its own. Overlap is the share of the edge's "
    "positions that the cloud's own selection keeps too; beyond chance: (overlap - kept) / (1 - kept)."
)


def _main_table(figures: Sequence[CaseFigures], measure: str, name: str) -> Table:
    columns = ["case", "kept %", "bytes", f"{measure} %", "95 %", "difference", "95 %", "p", "exact %"]
    columns += ["NLL", "difference", "95 %", "p", "answer kept %", "tokens"]
    rows = []
    for f in figures:
        sent = "–" if f.payload_bytes < 0 else f"{f.payload_bytes:,.0f}"
        cells = [f.case, f"{100 * f.kept:.0f}", sent, f"{f.f1.mean:.1f}", f"{f.f1.low:.1f} to {f.f1.high:.1f}"]
        cells += [*_difference(f.f1, 1), f"{f.exact.mean:.1f}", f"{f.nll.mean:.3f}", *_difference(f.nll, 3)]
        rows.append([*cells, _number(100 * f.answer_kept, 0), _number(f.answer_tokens, 1)])
    return Table(name, columns, rows)


def _difference(m: Measured, digits: int) -> list[str]:
    if math.isnan(m.p):
        return ["–", "–", "–"]
    star = "*" if m.p <= SIGNIFICANT else ""
    span = f"{m.difference_low:+.{digits}f} to {m.difference_high:+.{digits}f}"
    return [f"{m.difference:+.{digits}f}", span, f"{m.p:.3f}{star}"]


def _power(figures: Sequence[CaseFigures], measure: str) -> str:
    """What this number of examples can tell."""
    f1 = [f.f1.detectable for f in figures if f.f1.detectable > 0]
    nll = [f.nll.detectable for f in figures if f.nll.detectable > 0]
    if not f1 or not nll:
        return f"N={figures[0].count}."
    return (
        f"With a power of 80 %, before Holm's correction, N={figures[0].count} can tell {np.median(f1):.1f} points of "
        f"{measure} (median over cases; from {min(f1):.1f} for those that hardly change anything to {max(f1):.1f}) and "
        f"{np.median(nll):.3f} nats of NLL."
    )


def _scout_table(scouted: Sequence[CaseFigures], figures: Sequence[CaseFigures], length: int) -> Table:
    by_case = {f.case: f for f in figures}
    rows = []
    for f in scouted:
        own = by_case.get(f.case.replace("scout:", "own:", 1))
        theirs = ["–", "–"] if own is None else [f"{own.f1.mean:.1f}", f"{own.nll.mean:.3f}"]
        agreement = [_number(100 * f.overlap, 0), _number(100 * f.beyond_chance, 0)]
        rows.append(
            [f.case.removeprefix("scout:"), f"{f.f1.mean:.1f}", theirs[0], f"{f.nll.mean:.3f}", theirs[1], *agreement]
        )
    columns = ["positions", "scout", "own", "NLL scout", "own", "overlap %", "beyond chance %"]
    return Table(f"scouting_{length}", columns, rows)


def _figures(figures: Sequence[CaseFigures], facts: StudyFacts, length: int) -> list[Drawn]:
    sent = [f for f in figures if f.payload_bytes > 0 and "/" not in f.case]  # other ways need the text in the cloud
    if len(sent) < 2:
        return []
    side = sent[0].side
    return [
        _pareto(sent, "f1", f"{facts.measure} (%)", f"pareto_{facts.measure.lower()}_{side}_{length}", True),
        _pareto(sent, "nll", "NLL (nats a token)", f"pareto_nll_{side}_{length}", False),
    ]


def pareto(figures: Sequence[CaseFigures], metric: str, higher: bool) -> list[CaseFigures]:
    """The cases that none with as few bytes beats, from few bytes to many."""
    front: list[CaseFigures] = []
    for f in sorted(figures, key=lambda f: (f.payload_bytes, -_value(f, metric) if higher else _value(f, metric))):
        best = _value(front[-1], metric) if front else None
        if best is None or (_value(f, metric) > best if higher else _value(f, metric) < best):
            front.append(f)
    return front


def _value(f: CaseFigures, metric: str) -> float:
    return float(getattr(f, metric).mean)


def _pareto(figures: Sequence[CaseFigures], metric: str, axis: str, name: str, higher: bool) -> Drawn:
    front = pareto(figures, metric, higher)

    def draw(ax: Axes) -> pd.DataFrame:
        rows: list[tuple[Any, ...]] = []
        kinds = list(dict.fromkeys(_kind(f.case) for f in figures))
        for f in figures:
            m: Measured = getattr(f, metric)
            number = kinds.index(_kind(f.case))
            bars = [[max(0.0, m.mean - m.low)], [max(0.0, m.high - m.mean)]]
            style: dict[str, Any] = _mark(number) | {"markersize": 4}
            ax.errorbar(f.payload_bytes, m.mean, yerr=bars, elinewidth=0.7, linewidth=0, **style)
            rows.append((f.case, f.payload_bytes, m.mean, m.low, m.high, f in front))
        ax.plot([f.payload_bytes for f in front], [_value(f, metric) for f in front], color=INK, linewidth=0.8)
        for number, f in enumerate(front[:MAX_LABELS]):
            at: dict[str, Any] = {"xytext": (0, 10 + 9 * (number % 3)), "textcoords": "offset points", "ha": "center"}
            ax.annotate(short(f.case), (f.payload_bytes, _value(f, metric)), fontsize=7, **at)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        for number, kind in enumerate(kinds):
            ax.plot([], [], linewidth=0, label=kind, **_mark(number))
        label(ax, "bytes sent (median)", axis)
        legend(ax, len(kinds))
        return pd.DataFrame(rows, columns=["case", "bytes", metric, "low", "high", "on_front"])

    better = "Up" if higher else "Down"
    read = f"{better} and left is better; bars are 95 % intervals; none with fewer bytes beats those on the line."
    return draw_axes(name, f"{axis} against bytes", read, draw, height=4.6, wide=True)


def _mark(number: int) -> dict[str, Any]:
    """Of the kind of that number: 64 differ."""
    return {"marker": MARKERS[(number + number // 8) % 8], "color": COLOURS[number % 8]}


def _kind(case: str) -> str:
    """A case's selection or `quantizers`: what shares a colour."""
    return case.partition("@")[0] if "@" in case else "whole cache"


def _facts(facts: StudyFacts) -> Iterator[tuple[str, str]]:
    yield "command", command_of(facts)
    if facts.note:
        yield "note", facts.note
    yield "measured", f"{facts.started[:10]}, {facts.elapsed_s:,.0f} s for {facts.outcomes:,} outcomes"
    gpu = f", {facts.gpu}" if facts.gpu else ""
    yield (
        "machine",
        f"{facts.cpus} cores{gpu}, {facts.memory_gib:g} GiB, {facts.machine}, Linux {kernel_series(facts.kernel)}",
    )
    yield "versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    if facts.plan is not None and facts.plan_rise is not None and facts.plan_held_out is not None:
        counts = ", ".join(f"{facts.plan.count(name)} {name}" for name in dict.fromkeys(facts.plan))
        rise = f"raises the NLL of the model's own answers by {facts.plan_rise:.3f} nats a token where it was found"
        yield "mixed_int4", f"layers: {counts}; {rise}, by {facts.plan_held_out:.3f} on other examples"
        yield "its layers", " ".join(facts.plan)
    yield (
        "statistics",
        "whole contexts drawn 4,000 times (percentile bootstrap); signs of contexts flipped; Holm by table",
    )


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def short_name(model: str, cloud: str | None = None) -> str:
    """Without folders: where a model lies says nothing about it."""
    both = [model] if cloud is None else [model, cloud]
    return " and ".join(Path(part).name if part.startswith(("/", ".")) else part for part in both)


def command_of(facts: StudyFacts) -> str:
    """The command, without the folders that files and models were in."""
    return " ".join(Path(word).name if word.startswith("/") else word for word in facts.command.split())
