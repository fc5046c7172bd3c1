"""`scout workload`: what a workload is like, beside the recorded ones that the generators were fitted to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from agents.arrivals import MAX_REQUESTS
from agents.arrivals.generated import KINDS, GeneratedWorkload
from agents.arrivals.workload import WorkloadFile
from cluster.scenario.explain import located
from reports.drawing import HEIGHT_IN, WIDE_IN, Drawn, draw_figure, label, thinned
from reports.schema import WorkloadLengths, WorkloadSummary


class WorkloadError(ValueError):
    """A workload can't be described; the message says why and what is allowed."""


def describe(source: str | Path, settings: Mapping[str, Any], seed: int = 42) -> WorkloadSummary:
    """A workload in numbers.

    Args:
        source: a file, or a kind of generated workload.
        settings: as in scenarios, under `arrivals`.

    Raises:
        WorkloadError: the file can't be read, or settings are wrong.
    """
    at_s, contexts, outputs, blocks = _requests(source, settings, seed)
    if len(at_s) < 2:
        raise WorkloadError(f"{source}: {len(at_s)} requests; at least two are needed")
    gaps = np.diff(at_s)
    span_s = float(at_s[-1] - at_s[0])
    return WorkloadSummary(
        source=str(source),
        requests=len(at_s),
        span_s=span_s,
        rate_per_s=(len(at_s) - 1) / span_s if span_s else None,
        gaps_cv=float(gaps.std() / gaps.mean()) if span_s else None,
        context_tokens=_lengths(contexts),
        output_tokens=_lengths(outputs),
        blocks_seen_before=_seen_before(blocks),
    )


def picture(source: str | Path, settings: Mapping[str, Any], seed: int = 42) -> Drawn:
    """Requests over time, and the distributions of lengths. Raises WorkloadError."""
    at_s, contexts, outputs, _ = _requests(source, settings, seed)

    def draw(figure: Figure) -> pd.DataFrame:
        times, *lengths = figure.subplots(1, 3)
        times.hist(at_s, bins=min(200, max(10, len(at_s) // 20)))
        label(times, "time (s)", "requests")
        for axes, tokens, name in zip(lengths, (contexts, outputs), ("context", "answer"), strict=True):
            ordered = np.sort(tokens)[thinned(len(tokens))]
            axes.step(ordered, np.linspace(0, 100, len(ordered)), where="post")
            axes.set_xscale("log")
            label(axes, f"tokens of the {name}", "requests with no more (%)")
        return pd.DataFrame({"t_s": at_s, "context_tokens": contexts, "output_tokens": outputs})

    title = f"{Path(source).name}: {len(at_s):,} requests"
    return draw_figure("workload", title, "When requests come, and how long they are.", draw, WIDE_IN, HEIGHT_IN, True)


def show(console: Console, found: WorkloadSummary) -> None:
    """Print the figures, and below them those that the generators were fitted to."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in (
        "",
        "requests",
        "requests/s",
        "CV of gaps",
        "context p50",
        "p90",
        "p99",
        "answer p50",
        "p90",
        "p99",
    ):
        table.add_column(heading, justify="right" if heading else "left")
    lengths = [f"{n:,.0f}" for n in (*_points(found.context_tokens), *_points(found.output_tokens))]
    table.add_row(
        Path(found.source).name,
        f"{found.requests:,}",
        "–" if found.rate_per_s is None else f"{found.rate_per_s:.2f}",
        "–" if found.gaps_cv is None else f"{found.gaps_cv:.2f}",
        *lengths,
    )
    for name, kind in KINDS.items():
        cv = getattr(kind.gaps, "cv", 1.0)
        reference = [f"{p:,.0f}" for t in (kind.context_tokens, kind.output_tokens) for p in (t.p50, t.p90)]
        context, output = [*reference[:2], "–"], [*reference[2:], "–"]
        table.add_row(f"{name}, reference", "–", f"{kind.rate_per_s:g}", f"{cv:g}", *context, *output, style="dim")
    console.print(table)
    if found.blocks_seen_before is not None:
        console.print(f"{100 * found.blocks_seen_before:.1f} % of prefix blocks were seen before.", highlight=False)
    for name, kind in KINDS.items():
        console.print(f"{name}: fitted to {kind.source}", style="dim", highlight=False)


def _requests(
    source: str | Path, settings: Mapping[str, Any], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Sequence[tuple[int, ...]]]:
    """Times in s, tokens of contexts and answers, prefix blocks."""
    try:
        if str(source) in KINDS:
            given = {"duration_s": 3600.0, **settings, "kind": "generated", "like": str(source)}
            generated = GeneratedWorkload.model_validate(given)
            if (expected := generated.extent(1)[0]) > MAX_REQUESTS:
                raise WorkloadError(f"{source}: about {expected:,.0f} requests; there may be {MAX_REQUESTS:,}")
            arrivals = generated.schedule(1, np.random.default_rng([seed, 1]))
            sizes = np.array([a.lengths for a in arrivals if a.lengths] or np.empty((0, 2)), dtype=int)
            return np.array([a.intended_s for a in arrivals]), sizes[:, 0], sizes[:, 1], ()
        given = {**settings, "kind": "workload", "path": str(source)}
        requests = WorkloadFile.model_validate(given).requests
    except ValidationError as error:
        where = located(error, given, GeneratedWorkload if str(source) in KINDS else WorkloadFile)
        raise WorkloadError(where) from None
    return (
        np.array([request.at_s for request in requests]),
        np.array([request.context_tokens for request in requests]),
        np.array([request.output_tokens for request in requests]),
        [request.blocks for request in requests],
    )


def _lengths(tokens: np.ndarray) -> WorkloadLengths:
    p50, p90, p99 = np.percentile(tokens, [50, 90, 99])
    return WorkloadLengths(
        mean=float(tokens.mean()), p50=float(p50), p90=float(p90), p99=float(p99), max=int(tokens.max())
    )


def _points(lengths: WorkloadLengths) -> tuple[float, float, float]:
    return lengths.p50, lengths.p90, lengths.p99


def _seen_before(requests: Sequence[tuple[int, ...]]) -> float | None:
    """The share of prefix blocks that an earlier request had as well; None where the file names none."""
    seen: set[int] = set()
    total = again = 0
    for blocks in requests:
        total += len(blocks)
        again += sum(block in seen for block in blocks)
        seen.update(blocks)
    return again / total if total else None
