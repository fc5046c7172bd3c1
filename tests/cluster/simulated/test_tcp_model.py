"""What delay and loss do in a simulation: ways, slow start, the ceiling; nothing at all where there is neither."""

from pathlib import Path

import pytest
import yaml

from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import Document
from cluster.simulated.engine import SimulatedEngine
from cluster.simulated.fluid_link import FluidLink, FluidUplink
from cluster.simulated.tcp_model import INITIAL_WINDOW, AgentPath, Window, mean_loss
from models.clock import now_s
from netem.impairments import Impairment, Impairments, LinkImpairments, Loss
from netem.wire import FRAME_BYTES, MAX_RATE_MBPS
from tests.support.commands import REPOSITORY
from tests.support.virtual import virtually

SCENARIO = REPOSITORY / "configs" / "poisson.yaml"


def carried_ms(path: AgentPath, size_bytes: int, grant_mbps: float, times: int = 1) -> list[float]:
    found: list[float] = []

    async def main() -> None:
        uplink = FluidUplink(0, FluidLink(1000, grant_mbps), [], path)
        window = Window(path, "reno")
        for _ in range(times):
            began_s = now_s()
            await uplink._carry(size_bytes, None, window)
            found.append((now_s() - began_s) * 1e3)

    virtually(main)
    return found


def test_ways_add_up_and_losses_multiply() -> None:
    own = LinkImpairments(up=Impairment(delay_ms=5, loss=Loss(percent=10)), down=Impairment(delay_ms=7))
    shared = LinkImpairments(up=Impairment(delay_ms=20, loss=Loss(percent=10)))
    path = AgentPath.of(Impairments.of_groups(shared, [(1, own), (1, LinkImpairments())]), 0)
    assert path == AgentPath(0.025, 0.007, pytest.approx(0.19))
    other = AgentPath.of(Impairments.of_groups(shared, [(1, own), (1, LinkImpairments())]), 1)
    assert other == AgentPath(0.020, 0.0, pytest.approx(0.1))


def test_a_burst_s_loss_is_its_long_run_share() -> None:
    assert mean_loss(Impairment(loss=Loss(p=1, r=24))) == pytest.approx(0.04)
    assert mean_loss(Impairment(loss=Loss(p=5, r=20, loss_bad=60, loss_good=2))) == pytest.approx(0.136)


def test_slow_start_doubles_every_round_trip_and_is_over_then() -> None:
    path = AgentPath(0.05, 0.05)
    first, second = carried_ms(path, 100 * FRAME_BYTES, 100, times=2)
    # 10, 20 and 40 segments in three round trips; the other 30 at the rate of the fourth, 80 a round trip.
    assert INITIAL_WINDOW == 10 and first == pytest.approx(300 + 100 * 30 / 80)
    assert second == pytest.approx(100 * 100 / 80, rel=0.3), "the window is still there"


def test_a_grant_below_the_window_is_what_counts() -> None:
    (took_ms,) = carried_ms(AgentPath(0.01, 0.01), 50_000, 4)
    assert took_ms == pytest.approx(100)


def test_loss_is_a_ceiling_that_falls_with_the_round_trip() -> None:
    near, far = AgentPath(0.005, 0.005, 0.01), AgentPath(0.04, 0.04, 0.01)
    assert near.ceiling_mbps("reno") == pytest.approx(8 * far.ceiling_mbps("reno"))
    assert far.ceiling_mbps("reno") == pytest.approx(FRAME_BYTES * 8e-6 / 0.08 * (1.5 / 0.01) ** 0.5)
    assert far.ceiling_mbps("bbr") == MAX_RATE_MBPS == AgentPath(0.04, 0.04).ceiling_mbps("reno")


def outcome(up: dict, down: dict) -> dict[str, list[tuple]]:
    data = yaml.safe_load(SCENARIO.read_text())
    data["uplink"]["shared"] = {"up": up, "down": down}
    data["allocators"] = ["deadline"]
    scenario = Scenario.from_document(Document(SCENARIO, yaml.safe_dump(data)))
    return {
        turn.allocator: [(r.request_id, r.status, r.latency_ms) for r in turn.records]
        for turn in SimulatedEngine(scenario).run().turns
    }


def test_nothing_changes_where_there_is_nothing() -> None:
    plain = Scenario.load(SCENARIO, ["deadline"])
    (turn,) = SimulatedEngine(plain).run().turns
    assert outcome({}, {})["deadline"] == [(r.request_id, r.status, r.latency_ms) for r in turn.records]


def test_a_longer_way_is_a_later_answer() -> None:
    near, far = outcome({}, {})["deadline"], outcome({"delay_ms": 40}, {"delay_ms": 40})["deadline"]
    met = [sum(status == "met" for _, status, _ in rows) for rows in (near, far)]
    assert met[1] < met[0]
    quickest = [min(ms for _, status, ms in rows if status == "met") for rows in (near, far)]
    assert quickest[1] > quickest[0] + 75


def test_a_scenario_file_of_its_own_says_it(tmp_path: Path) -> None:
    text = SCENARIO.read_text().replace("uplink:\n", "uplink:\n  shared: {up: {delay_ms: 10}}\n", 1)
    assert Scenario.from_document(Document(tmp_path / "x.yaml", text)).impairments.shared.up.delay_ms == 10
