"""The bound over a whole run: right where it can be reckoned by hand, above all that runs, and near what is whole."""

import numpy as np
import pytest

from allocator.bench.hindsight import Released, Resources, TooLarge, hindsight
from allocator.problem import ModeOption
from allocator.solver.arrays import Floats
from cluster.experiments.bound import bound_of
from cluster.run_folder.ledger import assemble
from cluster.scenario.schema import Scenario
from cluster.simulated.engine import SimulatedEngine
from kvcache.modes import parse_mode
from reports import metrics


def option(size: int, cloud_ms: float, quality: float, mode: str = "full", edge_ms: float = 0.0) -> ModeOption:
    return ModeOption(parse_mode(mode), size, edge_ms, cloud_ms, quality)


def steady(bytes_per_s: float, workers: int = 1, batch: int = 1) -> Resources:
    def carried(at_s: Floats) -> Floats:
        return np.asarray(at_s) * bytes_per_s

    return Resources(carried, workers, batch)


@pytest.mark.parametrize(
    ("size", "cloud_ms", "met"),
    [(900, 100, 1), (901, 100, 0), (0, 1000, 1), (0, 1001, 0)],
    ids=["just fits", "a byte too much", "all of its time", "too slow"],
)
def test_one_request_alone(size: int, cloud_ms: float, met: int) -> None:
    found = hindsight([Released(5.0, 6.0, (option(size, cloud_ms, 80.0),))], steady(1000.0))
    assert (found.met, found.delivered) == pytest.approx((met, 80.0 * met), abs=1e-3)


def test_a_shared_uplink_and_a_shared_worker_are_divided() -> None:
    both = [Released(0.0, 1.0, (option(800, 0, 100.0), option(0, 0, 40.0, "local")))] * 2
    found = hindsight(both, steady(1000.0))
    assert found.met == pytest.approx(1.0, abs=1e-4)
    assert found.delivered == pytest.approx((1000 / 800 * 100 + 0.75 * 40) / 2, rel=1e-4)
    assert hindsight(both, steady(1000.0), whole=True).delivered == pytest.approx(70.0, rel=1e-4)
    served = [Released(0.0, 1.0, (option(0, 600, 100.0),))] * 3
    assert hindsight(served, steady(1.0)).met == pytest.approx(1 / 0.6 / 3, rel=1e-4)
    assert hindsight(served, steady(1.0, workers=2)).met == pytest.approx(1.0, abs=1e-4)
    assert hindsight(served, steady(1.0, batch=2)).met == pytest.approx(1.0, abs=1e-4)


def test_time_on_the_path_is_taken_from_what_is_sent_alone() -> None:
    far = [Released(0.0, 1.0, (option(900, 0, 100.0), option(0, 0, 40.0, "local", edge_ms=1000.0)), away_s=0.2)]
    found = hindsight(far, steady(1000.0))
    assert (found.met, found.delivered) == pytest.approx((1.0, 40.0), rel=1e-3)


def test_too_many_requests_are_refused_and_none_is_none() -> None:
    with pytest.raises(TooLarge, match="no bound for 100,000 requests; it is computed for 18,750 at most"):
        hindsight([Released(0.0, 1.0, (option(1, 0, 1.0),))] * 100_000, steady(1000.0))
    assert hindsight([], steady(1.0)).met == 0.0


STEADY, FADING = {"kind": "constant", "mbps": 30}, {"kind": "cellular", "cell": "nr_midband"}


@pytest.mark.parametrize(
    ("channel", "cloud"),
    [(STEADY, {}), (FADING, {}), (FADING, {"batch": 4}), (FADING, {"batching": {"kind": "continuous", "slots": 4}})],
    ids=["steady", "fading", "batches", "continuous batching"],
)
def test_no_allocator_exceeds_it_and_a_small_run_shows_how_loose_it_is(
    channel: dict[str, object], cloud: dict[str, object]
) -> None:
    scenario = Scenario.model_validate(
        {
            "name": "small",
            "deadline_ms": 5000,
            "allocators": ["deadline", "equal", "greedy", "prompt_only", "local_only"],
            "uplink": {"channel": channel},
            "cloud": cloud,
            "arrivals": {"kind": "poisson", "rate_per_s": 0.5, "duration_s": 10},
            "agents": {"groups": [{"profile": "measured/qwen2.5-7b", "count": 6}]},
            "modes": ["full", "int8", "mixed_int4", "int4", "prompt", "local"],
        }
    )
    bound, whole = bound_of(scenario), bound_of(scenario, whole=True)
    assert bound is not None and whole is not None
    ledger = assemble(SimulatedEngine(scenario).run().turns, scenario, "lost")
    best = 0.0
    for _, rows in ledger.groupby("allocator"):
        assert metrics.compliance(rows) <= whole.met <= bound.met
        assert metrics.delivered_quality(rows) <= whole.delivered <= bound.delivered
        best = max(best, metrics.delivered_quality(rows))
    assert bound.delivered - whole.delivered < 1.0, "what dividing requests among options brings"
    assert whole.delivered - best < 8.0


def test_there_is_none_where_events_are_to_come() -> None:
    scenario = Scenario.load("faults")
    assert scenario.events and bound_of(scenario) is None


def test_every_request_has_the_deadline_of_its_own_group_and_limits_of_tokens_only_raise_the_bound() -> None:
    scenario = Scenario.model_validate(
        {
            "name": "own-deadlines",
            "deadline_ms": 1500,
            "allocators": ["equal"],
            "uplink": {"channel": {"kind": "constant", "mbps": 8}},
            "arrivals": {"kind": "synchronized", "rounds": 1, "period_s": 70},
            "agents": {
                "groups": [
                    {"profile": "measured/qwen2.5-7b"},
                    {"profile": "measured/qwen2.5-7b", "deadline_ms": 60000, "ttft_ms": 59000, "tpot_ms": 50},
                ]
            },
            "modes": ["int4"],
        }
    )
    bound = bound_of(scenario)
    ledger = assemble(SimulatedEngine(scenario).run().turns, scenario, "lost")
    assert bound is not None
    assert metrics.compliance(ledger) == 0.5, "the patient agent's cache is in time"
    assert bound.met == pytest.approx(0.5, rel=1e-4) and metrics.compliance(ledger) <= bound.met
    assert metrics.delivered_quality(ledger) <= bound.delivered
