"""What a ledger says, in numbers: one summary per allocator."""

from typing import Any

import pandas as pd

STATUSES = ("met", "late", "rejected", "failed")
STAGES = (
    "lateness",
    "queue",
    "prefill",
    "uplink_wait",
    "allocate",
    "encode",
    "handshake",
    "transfer",
    "cloud_queue",
    "cloud_prefill",
    "decode",
    "answer",
)
"""Where a request's time goes; the ledger has each as `<stage>_ms`."""


def summarize(ledger: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """One summary for each allocator of a ledger, in the ledger's order of first appearance."""
    return {str(name): summarize_one(rows) for name, rows in ledger.groupby("allocator", sort=False)}


def summarize_one(rows: pd.DataFrame) -> dict[str, Any]:
    """The figures of the final table.

    compliance: share of issued requests answered by their deadline.
    rounds_all_met: share of synchronized rounds in which every request met its deadline; None without rounds.
    credited_quality: mean over issued requests of the quality of their answers, late ones included (as the papers
        count); delivered_quality: late ones count 0.
    latency percentiles: over answered requests (met and late), from the intended start, in ms.
    stages_ms: median duration of each stage over answered requests.
    lateness percentiles: how late the emulator itself started requests, in ms.
    """
    counts = {status: int((rows.status == status).sum()) for status in STATUSES}
    issued = len(rows)
    rounds = rows[rows["round"] >= 0]
    all_met = (rounds.status == "met").groupby(rounds["round"]).all()
    answered = rows.latency_ms.dropna()
    return {
        "issued": issued,
        **counts,
        "compliance": counts["met"] / issued,
        "rounds": len(all_met),
        "rounds_all_met": float(all_met.mean()) if len(all_met) else None,
        "credited_quality": float(rows.quality_credited.mean()),
        "delivered_quality": float(rows.quality_delivered.mean()),
        "latency_ms": _percentiles(answered),
        "stages_ms": {stage: _number(rows[f"{stage}_ms"][rows.latency_ms.notna()].median()) for stage in STAGES},
        "payload_bytes": int(rows.payload_bytes.sum()),
        "wire_bytes": int(rows.wire_bytes.sum()),
        "lateness_ms": _percentiles(rows.lateness_ms.dropna()) | {"max": _number(rows.lateness_ms.max())},
        "modes": {str(mode): int(n) for mode, n in rows["mode"][rows["mode"] != ""].value_counts().items()},
        "reasons": {str(reason): int(n) for reason, n in rows.reason[rows.reason != ""].value_counts().items()},
    }


def _percentiles(values: pd.Series) -> dict[str, float | None]:
    return {f"p{p}": _number(values.quantile(p / 100)) for p in (50, 95, 99)}


def _number(value: Any) -> float | None:
    """JSON has no NaN."""
    return None if pd.isna(value) else float(value)
