"""The edge's answers beside what is sent: begun in time for all, and none of them twice."""

from pathlib import Path

from cluster.scenario.schema import Scenario
from cluster.simulated.engine import SimulatedEngine


def test_an_answer_that_the_edge_has_begun_is_not_begun_again_when_the_allocator_says_local(tmp_path: Path) -> None:
    (tmp_path / "burst.csv").write_text("\n".join(["t_s,agent", "0,0", *(f"{0.3 + n * 0.005:g},0" for n in range(14))]))
    # A cache holds the one agent's uplink through an outage; then all that wait for it ask at once, with little time.
    scenario = Scenario.model_validate(
        {
            "name": "burst",
            "deadline_ms": 5000,
            "modes": ["mixed_int4", "local"],
            "uplink": {"channel": {"kind": "steps", "steps": [[0, 20], [0.3, 0.01], [4.2, 60]]}},
            "arrivals": {"kind": "trace", "path": str(tmp_path / "burst.csv")},
            "agents": {"groups": [{"profile": "measured/qwen2.5-7b"}]},
        }
    )
    (turn,) = SimulatedEngine(scenario).run().turns
    local_ms = scenario.agent_profiles[0].compute_ms(next(m for m in scenario.agent_profiles[0].modes if m.is_local))
    assert len(turn.records) == 15 and len(turn.records) * local_ms < 4000, "the edge has time for all"
    assert {record.status for record in turn.records} == {"met"}
    assert all(record.answered is not None and record.answered.is_local for record in turn.records)
