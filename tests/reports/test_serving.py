"""TTFT, TPOT and goodput of a ledger, counted by hand."""

import math

import pandas as pd
import pytest

from agents.record import FIELDS, Record, Status
from reports.summary import summarize_one
from reports.table import SERVING_COLUMNS, serving_shown


def row(at_s: float, status: Status, latency_ms: float, ttft_ms: float, tokens: int) -> dict[str, object]:
    record = Record(0, 0, "p", -1, at_s, 1000.0, status)
    record.answered_tokens = tokens
    if not math.isnan(latency_ms):
        record.ttft_ms = ttft_ms
        record.answered_in(latency_ms)
    return record.entry()


def test_goodput_counts_what_met_every_limit() -> None:
    rows = pd.DataFrame(
        [
            row(0.0, Status.MET, 900, 100, 9),
            row(1.0, Status.LATE, 2000, 400, 5),
            row(2.0, Status.MET, 500, math.nan, 0),
            row(3.0, Status.FAILED, math.nan, math.nan, 0),
        ]
    )
    assert list(rows) == FIELDS
    serving = summarize_one(rows.assign(allocator="a")).serving
    assert serving is not None
    assert (serving.requests_per_s, serving.goodput_per_s) == (3 / 4, 2 / 4), "until the last was due, after 4 s"
    assert (serving.tokens_per_s, serving.token_goodput_per_s) == (14 / 4, 9 / 4)
    assert serving.ttft_ms.p50 == 400, "an answer that came whole has its latency"
    assert serving.tpot_ms.p50 == pytest.approx((100 + 400) / 2), "of those with tokens"
    assert len(serving_shown(summarize_one(rows))) == len(SERVING_COLUMNS)


def test_ledgers_from_before_have_none() -> None:
    older = pd.DataFrame([row(0.0, Status.MET, 900, 100, 9)]).drop(columns=["ttft_ms", "tpot_ms", "answered_tokens"])
    found = summarize_one(older)
    assert found.serving is None and set(serving_shown(found)) == {"–"}
