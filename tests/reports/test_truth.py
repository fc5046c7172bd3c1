"""Where the truth is known: equal allocators are rarely called different, a real advantage is found. Simulated runs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from agents.record import Status
from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import Document
from cluster.simulated.engine import SimulatedEngine
from reports.statistics import compare

SQUEEZED = """
name: truth
deadline_ms: 5000
modes: [int8, mixed_int4, int4]
allocators: [equal]
uplink: {channel: {kind: markov}}
arrivals: {kind: poisson, rate_per_s: 0.3, duration_s: 30}
agents: {groups: [{profile: measured/qwen2.5-7b, count: 6}]}
cloud: {workers: 2}
"""
RUNS, SEEDS, COMPARISONS = 400, 20, 200
LEVEL = 0.05


@pytest.fixture(scope="module")
def outcomes() -> list[np.ndarray]:
    """For each of many simulated runs, whether each request met its deadline."""

    def one(seed: int) -> np.ndarray:
        scenario = Scenario.from_document(Document(Path("truth.yaml"), f"{SQUEEZED}seed: {seed}\n"))
        (turn,) = SimulatedEngine(scenario).run().turns
        return np.array([record.status == Status.MET for record in turn.records])

    return [one(seed) for seed in range(RUNS)]


def percent(met: np.ndarray) -> float:
    return 100 * float(met.mean())


def drawn(rng: np.random.Generator, outcomes: list[np.ndarray], count: int) -> Iterator[list[np.ndarray]]:
    """Runs that a comparison has to itself, again and again."""
    while True:
        yield [outcomes[i] for i in rng.permutation(len(outcomes))[:count]]


def test_runs_vary_enough_to_be_mistaken_for_a_difference(outcomes: list[np.ndarray]) -> None:
    met = [percent(run) for run in outcomes]
    assert 20 < np.mean(met) < 90 and np.std(met) > 4


def test_identical_allocators_are_rarely_called_different(outcomes: list[np.ndarray]) -> None:
    """Two series of runs of one allocator, not even on the same arrivals, as if they were of two."""
    rng = np.random.default_rng(0)
    different = 0
    for _, runs in zip(range(COMPARISONS), drawn(rng, outcomes, 2 * SEEDS), strict=False):
        first, second = [percent(run) for run in runs[:SEEDS]], [percent(run) for run in runs[SEEDS:]]
        (found,) = compare([(first, second)], rng, "points")
        different += not found.verdict.startswith("no difference")
    # A test of level 5 % errs in 5 % of all cases in the long run, and in 200 of them by chance a little more.
    assert different <= binom.ppf(0.999, COMPARISONS, LEVEL)


def test_a_planted_advantage_of_three_points_is_found(outcomes: list[np.ndarray]) -> None:
    """The same runs, with so many of the misses turned into answers in time that it makes three points on average."""
    rng = np.random.default_rng(1)
    found = 0
    for _, runs in zip(range(COMPARISONS), drawn(rng, outcomes, SEEDS), strict=False):
        missed = np.mean([1 - run.mean() for run in runs])
        better = [run | (rng.random(len(run)) < 0.03 / missed) for run in runs]
        pair = ([percent(run) for run in better], [percent(run) for run in runs])
        (difference,) = compare([pair], rng, "points")
        found += difference.verdict.startswith("better")
    assert found >= 0.9 * COMPARISONS
