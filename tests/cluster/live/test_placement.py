"""Whether actors fit is known before any is started."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.live.placement import PlacementError, fits_on_gpus, place
from cluster.scenario.schema import Scenario

TINY = Scenario.load(Path(__file__).parents[1] / "data" / "tiny.yaml")


def asking(agents_gpus: float, worker_gpus: float = 0.0, agents_cpus: float = 0.1) -> Scenario:
    agents = TINY.agents.model_copy(update={"num_gpus": agents_gpus, "num_cpus": agents_cpus})
    cloud = TINY.cloud.model_copy(update={"num_gpus": worker_gpus})
    return TINY.model_copy(update={"agents": agents, "cloud": cloud})


def test_gpu_fractions_hold_where_there_are_gpus() -> None:
    placed = place(asking(0.1, 0.4), cpus=2, gpus=1, gpus_in_all=1)
    assert (placed.hosts, placed.agent_gpus, placed.worker_gpus, placed.notice) == (2, 0.1, 0.4, None)


def test_without_gpus_cpu_fractions_do_and_it_is_said() -> None:
    placed = place(asking(0.1, 0.4), cpus=2, gpus=0, gpus_in_all=0)
    assert (placed.agent_gpus, placed.worker_gpus, placed.agent_cpus) == (0, 0, 0.1)
    assert placed.notice and "num_cpus" in placed.notice
    assert place(asking(0.0), cpus=2, gpus=0, gpus_in_all=0).notice is None


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (asking(0.6), "2 agent actors x agents.num_gpus 0.6"),
        (asking(0.1, 0.9), "2 workers x cloud.num_gpus 0.9"),
        (asking(2), "the 1 of 1 GPU"),
        (asking(0, 0, 1.5), "asks 3.3 CPUs and this node has 2 free"),
    ],
)
def test_what_can_t_fit_is_refused_by_key(scenario: Scenario, message: str) -> None:
    with pytest.raises(PlacementError, match=message.replace("(", r"\(")):
        place(scenario, cpus=2, gpus=1, gpus_in_all=1)


def test_gpus_that_others_use_are_not_no_gpus() -> None:
    with pytest.raises(PlacementError, match="the 0 of 1 GPU"):
        place(asking(0.1), cpus=2, gpus=0.5, gpus_in_all=1)


@pytest.mark.parametrize(
    ("asked", "gpus", "fits"),
    [
        ([0.1] * 10, 1, True),
        ([0.1] * 11, 1, False),
        ([0.6, 0.6], 1, False),  # 1.2 in all, but also not 1.2 of two halves:
        ([0.6, 0.6], 2, True),
        ([0.6, 0.6, 0.6], 2, False),  # 1.8 GPUs asked of 2, and yet no room: a fraction stays on one GPU
        ([1, 0.5, 0.5], 2, True),
        ([2, 0.1], 2, False),
        ([0.3, 0.3, 0.3, 0.1], 1, True),
        ([], 0, True),
    ],
)
def test_packing(asked: list[float], gpus: int, fits: bool) -> None:
    assert fits_on_gpus(asked, gpus) is fits


@given(st.lists(st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0]), max_size=12), st.integers(0, 4))
def test_packing_never_gives_out_more_than_there_is(asked: list[float], gpus: int) -> None:
    if fits_on_gpus(asked, gpus):
        assert sum(asked) <= gpus + 1e-6
    if sum(asked) <= gpus and all(amount in (0.5, 1.0) for amount in asked):
        assert fits_on_gpus(asked, gpus)
