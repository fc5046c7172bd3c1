"""The small real models at a machine's own pace: everything stretched alike, and a scenario that loads."""

from pathlib import Path

import pytest

from cluster.experiments.own_pace import MOST_STRETCH, SLACK, Pace, write_scenario
from cluster.scenario.schema import Scenario
from tests.support.commands import CONFIGS

SHIPPED = Scenario.load(CONFIGS / "small-family.yaml")


@pytest.mark.parametrize("slowdown", [1.0, 2.5, 7.9, 40.0])
def test_times_are_stretched_and_proportions_kept(slowdown: float, tmp_path: Path) -> None:
    scenario = Scenario.load(write_scenario(Pace(slowdown, cores=8), tmp_path))
    stretch = min(SLACK * slowdown, MOST_STRETCH)
    assert scenario.deadline_ms == pytest.approx(SHIPPED.deadline_ms * stretch, rel=0.01)
    assert scenario.planning_margin_ms == pytest.approx(SHIPPED.planning_margin_ms * stretch, rel=0.01)
    assert scenario.lateness_limit_ms / scenario.deadline_ms == pytest.approx(
        SHIPPED.lateness_limit_ms / SHIPPED.deadline_ms, rel=0.01
    )
    carried = [s.uplink.channel.mbps * s.deadline_ms for s in (scenario, SHIPPED)]
    assert carried[0] == pytest.approx(carried[1], rel=0.01), "as many bytes before the deadline"
    for mine, shipped in zip(scenario.models, SHIPPED.models, strict=True):
        assert mine.edge_prefill_ms == pytest.approx(shipped.edge_prefill_ms * slowdown, rel=1e-3)
        for mode, costs in shipped.modes.items():
            assert mine.modes[mode].payload_bytes == costs.payload_bytes
            assert mine.compute_ms(mode) == pytest.approx(shipped.compute_ms(mode) * slowdown, rel=1e-3, abs=1e-3)


def test_a_slow_machine_has_fewer_rounds_and_few_cores_fewer_agents(tmp_path: Path) -> None:
    fast, slow, small = (
        Scenario.load(write_scenario(pace, tmp_path / str(number)))
        for number, pace in enumerate((Pace(1.0, 64), Pace(6.0, 64), Pace(1.0, 2)))
    )
    assert len({request.round for request in slow.schedule()}) < len({request.round for request in fast.schedule()})
    assert len(small.agent_profiles) < len(fast.agent_profiles) == len(SHIPPED.agent_profiles)
