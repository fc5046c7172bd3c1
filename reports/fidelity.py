"""How far a simulated run is from a live one of the same scenario, request by request."""

from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from agents.record import STAGES
from reports import metrics
from reports.schema import BothEngines, Deviation, Fidelity, RelativeError
from reports.summary import number

SHOWN_STAGES = 4
COMPARED = ["status", "mode", "quality_delivered"]


def compare(live: Path, simulated: Path) -> dict[str, Deviation]:
    """One comparison for each allocator that both ledgers have.

    Args:
        live, simulated: ledgers (Parquet files).
    """
    keys = ["allocator", "request_id"]
    both = pd.read_parquet(live).merge(pd.read_parquet(simulated), on=keys, suffixes=("_live", "_sim"))
    return {str(name): _compare_one(rows) for name, rows in both.groupby("allocator", sort=False)}


def _compare_one(rows: pd.DataFrame) -> Deviation:
    answered = rows.dropna(subset=["latency_ms_live", "latency_ms_sim"])
    error = (answered.latency_ms_sim - answered.latency_ms_live) / answered.latency_ms_live
    live, simulated = (
        rows[[f"{column}_{side}" for column in COMPARED]].set_axis(COMPARED, axis="columns") for side in ("live", "sim")
    )
    met = BothEngines(live=metrics.compliance(live), simulated=metrics.compliance(simulated))
    parted = (live["mode"] != simulated["mode"]) | (live.status != simulated.status)
    stages = {s: float((answered[f"{s}_ms_live"] - answered[f"{s}_ms_sim"]).mean()) for s in STAGES}
    return Deviation(
        requests=len(rows),
        answered_in_both=len(answered),
        latency_error=RelativeError(median=number(error.abs().median()), p95=number(error.abs().quantile(0.95))),
        bias=number(error.median()),
        compliance=met,
        compliance_difference=100 * (met.simulated - met.live),
        delivered_difference=metrics.delivered_quality(simulated) - metrics.delivered_quality(live),
        parted=float(parted.mean()),
        first_parted=[int(i) for i in rows.request_id[parted].head(5)],
        ttft_error=_ttft_error(answered),
        stages_ms=dict(sorted(stages.items(), key=lambda item: -abs(item[1]))) if len(answered) else {},
    )


def _ttft_error(answered: pd.DataFrame) -> RelativeError | None:
    if not {"ttft_ms_live", "ttft_ms_sim"} <= set(answered) or not answered.tpot_ms_live.notna().any():
        return None
    error = ((answered.ttft_ms_sim - answered.ttft_ms_live) / answered.ttft_ms_live).abs()
    return RelativeError(median=number(error.median()), p95=number(error.quantile(0.95)))


def print_fidelity(console: Console, document: Fidelity) -> None:
    """A line for each allocator, and where live and simulated part."""
    table = Table(title=document.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
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
    for allocator, compared in document.allocators.items():
        _add_row(table, allocator, compared)
        if again := document.live_again.get(allocator):
            _add_row(table, "  live again", again)
    console.print(table)
    for allocator, c in document.allocators.items():
        largest = list(c.stages_ms.items())[:SHOWN_STAGES]
        stages = ", ".join(f"{stage} {ms:+.1f} ms" for stage, ms in largest)
        parted = f"; first requests that part: {', '.join(map(str, c.first_parted))}" if c.first_parted else ""
        if c.ttft_error is not None:
            median, p95 = map(_percent, (c.ttft_error.median, c.ttft_error.p95))
            console.print(f"{allocator}: error of the time to the first token: median {median}, p95 {p95}")
        console.print(f"{allocator}: live takes longer (+) or less (-), on average: {stages}{parted}", highlight=False)
    asked = ", ".join(f"{name} {ms:g} ms" for name, ms in document.ask_ms.items())
    footnote = f"{document.footnote}; asking the allocator takes as long as live: {asked}"
    console.print(footnote, style="dim", highlight=False)


def _add_row(table: Table, name: str, c: Deviation) -> None:
    table.add_row(
        name,
        str(c.requests),
        _percent(c.latency_error.median),
        _percent(c.latency_error.p95),
        _percent(c.bias, sign="+"),
        f"{c.compliance.live:.1%}",
        f"{c.compliance.simulated:.1%}",
        f"{c.compliance_difference:+.2f}",
        f"{c.delivered_difference:+.2f}",
        f"{c.parted:.1%}",
    )


def _percent(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.2%}"
