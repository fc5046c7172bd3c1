"""How far a simulated run is from a live one of the same scenario, request by request."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from reports.summary import STAGES

SHOWN_STAGES = 4


def compare(live: Path, simulated: Path) -> dict[str, dict[str, Any]]:
    """One comparison for each allocator that both ledgers have.

    Args:
        live, simulated: ledgers (Parquet files).

    latency_error: of requests answered in both, |simulated - live| / live: median and p95; bias: the signed median.
    compliance_difference: simulated - live, in percentage points; delivered_difference: of mean delivered quality.
    parted: share of requests whose mode or status differs. stages_ms: mean live - simulated of every stage's duration
    over requests answered in both, largest first.
    """
    keys = ["allocator", "request_id"]
    both = pd.read_parquet(live).merge(pd.read_parquet(simulated), on=keys, suffixes=("_live", "_sim"))
    return {str(name): _compare_one(rows) for name, rows in both.groupby("allocator", sort=False)}


def _compare_one(rows: pd.DataFrame) -> dict[str, Any]:
    answered = rows.dropna(subset=["latency_ms_live", "latency_ms_sim"])
    error = (answered.latency_ms_sim - answered.latency_ms_live) / answered.latency_ms_live
    met_live, met_sim = (rows[f"status_{side}"] == "met" for side in ("live", "sim"))
    parted = (rows.mode_live != rows.mode_sim) | (rows.status_live != rows.status_sim)
    stages = {s: float((answered[f"{s}_ms_live"] - answered[f"{s}_ms_sim"]).mean()) for s in STAGES}
    return {
        "requests": len(rows),
        "answered_in_both": len(answered),
        "latency_error": {"median": _number(error.abs().median()), "p95": _number(error.abs().quantile(0.95))},
        "bias": _number(error.median()),
        "compliance": {"live": float(met_live.mean()), "simulated": float(met_sim.mean())},
        "compliance_difference": float(met_sim.mean() - met_live.mean()) * 100,
        "delivered_difference": float(rows.quality_delivered_sim.mean() - rows.quality_delivered_live.mean()),
        "parted": float(parted.mean()),
        "first_parted": [int(i) for i in rows.request_id[parted].head(5)],
        "stages_ms": dict(sorted(stages.items(), key=lambda item: -abs(item[1]))) if len(answered) else {},
    }


def print_fidelity(console: Console, document: dict[str, Any]) -> None:
    """A line for each allocator, and where live and simulated part."""
    table = Table(title=document["title"], title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("allocator", no_wrap=True)
    for name in (
        "requests",
        "latency error\nmedian",
        "\np95",
        "\nbias",
        "met\nlive",
        "\nsimulated",
        "\npoints",
        "delivered\nquality",
        "parted",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for allocator, compared in document["allocators"].items():
        _add_row(table, allocator, compared)
        if again := document["live_again"].get(allocator):
            _add_row(table, "  live again", again)
    console.print(table)
    for allocator, c in document["allocators"].items():
        largest = list(c["stages_ms"].items())[:SHOWN_STAGES]
        stages = ", ".join(f"{stage} {ms:+.1f} ms" for stage, ms in largest)
        parted = f"; first requests that part: {', '.join(map(str, c['first_parted']))}" if c["first_parted"] else ""
        console.print(f"{allocator}: live takes longer (+) or less (-), on average: {stages}{parted}", highlight=False)
    asked = ", ".join(f"{name} {ms:g} ms" for name, ms in document["ask_ms"].items())
    footnote = f"{document['footnote']}; asking the allocator takes as long as live: {asked}"
    console.print(f"[dim]{footnote}[/dim]", highlight=False)


def _add_row(table: Table, name: str, c: dict[str, Any]) -> None:
    table.add_row(
        name,
        str(c["requests"]),
        _percent(c["latency_error"]["median"]),
        _percent(c["latency_error"]["p95"]),
        _percent(c["bias"], sign="+"),
        f"{c['compliance']['live']:.1%}",
        f"{c['compliance']['simulated']:.1%}",
        f"{c['compliance_difference']:+.2f}",
        f"{c['delivered_difference']:+.2f}",
        f"{c['parted']:.1%}",
    )


def _percent(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.2%}"


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
