"""More requests than can be served: what is hopeless is rejected early, and takes nothing from the others."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from agents.record import STAGES, Status
from cluster.run_folder.ledger import assemble
from cluster.scenario.schema import Scenario
from cluster.simulated.engine import SimulatedEngine

Write = Callable[..., Path]
AGENTS, BACKLOG = 4, 8


@pytest.fixture
def simulate(scenario: Write) -> Callable[..., Mapping[str, pd.DataFrame]]:
    """Caches of four agents on 50 Mbit/s for 20 s, at a rate of arrivals (1/s each): the ledger of each allocator."""

    def run(rate_per_s: float, *allocators: Any, **changes: Any) -> Mapping[str, pd.DataFrame]:
        written = {
            "deadline_ms": 5000,
            "modes": ["full", "int8", "mixed_int4", "int4"],
            "uplink": {"channel": {"kind": "constant", "mbps": 50}},
            "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s, "duration_s": 20},
            "agents": {"groups": [{"profile": "measured/qwen2.5-7b", "count": AGENTS}], "backlog_limit": BACKLOG},
            "cloud": {"workers": 2},
            "allocators": list(allocators),
        }
        loaded = Scenario.load(scenario(**written | changes))
        turns = SimulatedEngine(loaded).run().turns
        rows = assemble(turns, loaded, "lost")
        assert len(rows) == len(loaded.schedule()) * len(allocators)
        assert max(m.waiting for turn in turns for m in turn.timeline.moments) <= 2 * AGENTS * BACKLOG, "bounded"
        return {str(name): own for name, own in rows.groupby("allocator")}

    return run


def test_goodput_stays_when_arrivals_are_ten_and_thirty_times_too_many(simulate: Callable[..., Any]) -> None:
    met = {}
    for times in (1, 10, 30):
        rows = simulate(0.5 * times, "deadline")["deadline"]
        met[times] = (rows.status == Status.MET).sum()
        unserved = rows[rows.status == Status.REJECTED]
        assert unserved.reason.str.match("shed|backlog").all() and (unserved.wire_bytes == 0).all()
    assert met[10] >= 0.95 * met[1] and met[30] >= 0.95 * met[1], met


def test_who_sheds_and_who_does_not(simulate: Callable[..., Any]) -> None:
    """As published, `equal` serves everything, unless `shed` says otherwise; a scenario can want late answers."""
    unshed = {"policy": "deadline", "shed": False, "label": "unshed"}
    shed = {"policy": "equal", "shed": True, "label": "equal-shed"}
    found = simulate(3, "deadline", "equal", unshed, shed)
    counted = {name: rows.reason.str.startswith("shed").sum() for name, rows in found.items()}
    assert counted["equal"] == counted["unshed"] == 0
    assert counted["deadline"] > 0 and counted["equal-shed"] > 0
    late = simulate(3, "deadline", on_infeasible="late")["deadline"]
    assert not late.reason.str.startswith("shed").any()


def test_the_edge_answers_what_can_t_be_sent_in_time(simulate: Callable[..., Any]) -> None:
    """Nothing has to be shed as long as the edge can answer, even with a full backlog, and next to nothing is late."""
    modes = ["full", "int8", "mixed_int4", "int4", "local"]
    rows = simulate(3, "deadline", modes=modes)["deadline"]
    assert rows.status.isin([Status.MET, Status.LATE]).all() and (rows.status == Status.MET).mean() > 0.99
    assert set(rows.answered.map(str)) > {"local"}
    stages = rows[[c for c in rows if c.endswith("_ms") and c.removesuffix("_ms") in STAGES]].sum(axis=1)
    pd.testing.assert_series_equal(stages, rows.latency_ms, check_names=False)
