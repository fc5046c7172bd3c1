"""What a ledger says, in numbers: one summary per allocator."""

from typing import Any

import numpy as np
import pandas as pd

from agents.record import STAGES
from reports import metrics
from reports.schema import AllocatorSummary, Lateness, Percentiles, Serving

STATUSES = ("met", "late", "rejected", "failed")
PERCENTILES = (50, 95, 99)


def summarize(ledger: pd.DataFrame) -> dict[str, AllocatorSummary]:
    """One summary for each allocator of a ledger, in the ledger's order of first appearance."""
    return {str(name): summarize_one(rows) for name, rows in ledger.groupby("allocator", sort=False)}


def summarize_one(rows: pd.DataFrame) -> AllocatorSummary:
    """The figures of one allocator's rows, of which there is at least one."""
    rounds = rows[rows["round"] >= 0]
    all_met = metrics.is_met(rounds).groupby(rounds["round"]).all()
    answered = rows.latency_ms.dropna()
    met, late, rejected, failed = (int((rows.status == status).sum()) for status in STATUSES)
    return AllocatorSummary(
        scheduled=len(rows),
        issued=int(metrics.is_released(rows).sum()),
        met=met,
        late=late,
        rejected=rejected,
        failed=failed,
        compliance=metrics.compliance(rows),
        rounds=len(all_met),
        rounds_all_met=float(all_met.mean()) if len(all_met) else None,
        credited_quality=metrics.credited_quality(rows),
        delivered_quality=metrics.delivered_quality(rows),
        latency_ms=Percentiles(**_percentiles(answered)),
        stages_ms={stage: number(rows[f"{stage}_ms"][rows.latency_ms.notna()].median()) for stage in STAGES},
        payload_bytes=int(rows.payload_bytes.sum()),
        wire_bytes=int(rows.wire_bytes.sum()),
        lateness_ms=Lateness(**_percentiles(rows.lateness_ms.dropna()), max=number(rows.lateness_ms.max())),
        modes=_counted(rows["mode"]),
        reasons=_counted(rows.reason),
        serving=_serving(rows) if "ttft_ms" in rows else None,
    )


def _serving(rows: pd.DataFrame) -> Serving:
    answered, met, span_s = rows.latency_ms.notna(), metrics.is_met(rows), metrics.span_s(rows)
    tokens = rows.answered_tokens
    counted = bool(tokens.any())
    return Serving(
        ttft_ms=Percentiles(**_percentiles(rows.ttft_ms[answered])),
        tpot_ms=Percentiles(**_percentiles(rows.tpot_ms.dropna())),
        requests_per_s=int(answered.sum()) / span_s,
        goodput_per_s=int(met.sum()) / span_s,
        tokens_per_s=int(tokens[answered].sum()) / span_s if counted else None,
        token_goodput_per_s=int(tokens[met].sum()) / span_s if counted else None,
    )


def requests_by(ledger: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """A ledger's requests, counted by the values of some columns, which are the index; with a summary's metrics."""
    statuses = {status: ledger.status == status for status in STATUSES}
    groups = ledger.assign(**statuses, released=metrics.is_released(ledger)).groupby(columns, sort=False, dropna=False)
    counts = groups[list(STATUSES)].sum()
    latency = groups.latency_ms.quantile(np.array(PERCENTILES) / 100).unstack()
    return pd.DataFrame(
        {
            "scheduled": groups.size(),
            "issued": groups["released"].sum(),
            **{status: counts[status] for status in STATUSES},
            "compliance": groups["met"].mean(),
            "credited_quality": groups.quality_credited.mean(),
            "delivered_quality": groups.quality_delivered.mean(),
            **{f"latency_p{p}_ms": latency[p / 100] for p in PERCENTILES},
            "payload_bytes": groups.payload_bytes.sum(),
            "wire_bytes": groups.wire_bytes.sum(),
        }
    )


def number(value: Any) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if pd.isna(value) else float(value)


def _percentiles(values: pd.Series) -> dict[str, float | None]:
    return {f"p{p}": number(values.quantile(p / 100)) for p in PERCENTILES}


def _counted(texts: pd.Series) -> dict[str, int]:
    """How often each text occurs, the empty one left out."""
    return {str(text): int(n) for text, n in texts[texts != ""].value_counts().items()}
