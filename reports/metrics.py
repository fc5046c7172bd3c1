"""The metrics of requests' outcomes, each computed in one place."""

import pandas as pd

from agents.record import NEVER_RELEASED

MET = "met"


def attainment(met: int, of: int) -> float | None:
    """SLO attainment: the share of requests answered by their deadline; None where there are no requests."""
    return met / of if of else None


def is_met(rows: pd.DataFrame) -> pd.Series:
    """For each row of a ledger, whether the request met its deadline."""
    return rows.status == MET


def is_released(rows: pd.DataFrame) -> pd.Series:
    """For each row of a ledger, whether an agent released the request at all."""
    return ~rows.reason.str.startswith(NEVER_RELEASED)


def compliance(rows: pd.DataFrame) -> float:
    """SLO attainment of rows of a ledger."""
    return float(is_met(rows).mean())


def compliance_by_agent(rows: pd.DataFrame) -> pd.Series:
    """SLO attainment of each agent, in percent, by agent id."""
    return 100 * is_met(rows).groupby(rows.agent_id).mean()


def span_s(rows: pd.DataFrame) -> float:
    """Seconds from the first request's intended start until the last has ended or was due; at least a millisecond."""
    ended_s = rows.intended_s + rows.latency_ms.fillna(rows.deadline_ms) / 1e3
    return max(1e-3, float(ended_s.max() - rows.intended_s.min()))


def credited_quality(rows: pd.DataFrame) -> float:
    """Mean quality of answers per scheduled request, late answers in full (as the papers count)."""
    return float(rows.quality_credited.mean())


def delivered_quality(rows: pd.DataFrame) -> float:
    """Mean quality of answers per scheduled request, late answers counting 0."""
    return float(rows.quality_delivered.mean())
