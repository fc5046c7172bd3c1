"""The edge's answers beside what is sent: begun in time for all, and none of them twice."""

from pathlib import Path

import pytest

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


def test_an_answer_from_a_hedge_is_waited_for_over_the_path_s_delay() -> None:
    # Every other cache is lost to an outage; what goes ahead of it comes back over 80 ms, more than the margin.
    outages = [[10.0 * n, 20.0] for n in range(40)]
    outages += [[40.0 * n + 0.3, 0.02] for n in range(10)]
    scenario = Scenario.model_validate(
        {
            "name": "far",
            "deadline_ms": 5000,
            "modes": ["mixed_int4", "prompt", "local"],
            "allocators": ["deadline"],
            "uplink": {
                "channel": {"kind": "steps", "steps": sorted(outages)},
                "shared": {"up": {"delay_ms": 40}, "down": {"delay_ms": 40}},
            },
            "arrivals": {"kind": "synchronized", "rounds": 20, "period_s": 20},
            "agents": {"groups": [{"profile": "measured/qwen2.5-7b"}]},
        }
    )
    (turn,) = SimulatedEngine(scenario).run().turns
    assert {record.status for record in turn.records} == {"met"}
    caught = [str(r.answered) for r in turn.records if str(r.mode) == "mixed_int4" and r.answered != r.mode]
    assert len(caught) > 3
    assert set(caught[1:]) == {"prompt"}, "once it knows what the path takes"


@pytest.mark.parametrize(("tokens", "held"), [(20, True), (576, False)], ids=["short", "long"])
@pytest.mark.parametrize("limits", [{"ttft_ms": 3000}, {"ttft_ms": 3000, "tpot_ms": 50}])
def test_an_answer_in_hand_is_not_held_beyond_its_first_token_s_limit(
    tokens: int, held: bool, limits: dict[str, float], tmp_path: Path
) -> None:
    rows = [f"{at_s},1024,{tokens}" for at_s in (0, 3.9)]
    (tmp_path / "load.csv").write_text("\n".join(["t_s,context_tokens,output_tokens", *rows]))
    # The cache of the second request is caught by an outage that nothing foretells.
    scenario = Scenario.model_validate(
        {
            "name": "outage",
            "deadline_ms": 20000,
            **limits,
            "modes": ["int8", "local"],
            "allocators": ["deadline"],
            "uplink": {"channel": {"kind": "steps", "steps": [[0, 400], [3.99, 0.05]]}},
            "cloud": {"batching": {"kind": "continuous"}},
            "arrivals": {"kind": "workload", "path": str(tmp_path / "load.csv")},
            "agents": {"groups": [{"profile": "sized/qwen2.5-7b"}]},
        }
    )
    (turn,) = SimulatedEngine(scenario).run().turns
    caught = turn.records[1]
    assert str(caught.mode) == "int8" and str(caught.answered) == "local" and caught.status == "met"
    if held:  # until the limit, less half of the margin; then it is given whole
        assert caught.ttft_ms == caught.latency_ms == pytest.approx(2900) and caught.decode_ms < 1000
    else:  # what there is of it is given then, the rest as it is made
        assert caught.ttft_ms == pytest.approx(2900) and caught.latency_ms > 10_000 and caught.answered_tokens == tokens
        assert caught.tpot_ms == pytest.approx((caught.latency_ms - 2900) / (tokens - 1))
