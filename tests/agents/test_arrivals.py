"""Arrival processes keep their contract: reproducible, in order, every agent's."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from agents.arrivals import ARRIVALS, AnyArrivals, Arrival, ArrivalProcess, ArrivalTraceError


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, dict]:
    (tmp_path / "a.csv").write_text("t_s,agent\n0.5,2\n0.1,0\n0.5,1\n")
    (tmp_path / "w.csv").write_text("t_s,context_tokens,output_tokens\n" + "".join(f"{n},10,5\n" for n in range(5)))
    return {
        "synchronized": {"rounds": 3, "period_s": 2},
        "poisson": {"rate_per_s": 5, "duration_s": 20},
        "bursts": {"rate_per_s": 1, "size": 2, "duration_s": 30},
        "trace": {"path": str(tmp_path / "a.csv")},
        "workload": {"path": str(tmp_path / "w.csv")},
        "generated": {"like": "chat", "duration_s": 20},
    }


def make(data: dict) -> ArrivalProcess:
    return TypeAdapter(AnyArrivals).validate_python(data)


@pytest.mark.parametrize("kind", ARRIVALS)
def test_contract(kind: str, settings: dict[str, dict]) -> None:
    process = make({"kind": kind, **settings[kind]})
    schedule = process.schedule(3, np.random.default_rng(1))
    assert schedule == process.schedule(3, np.random.default_rng(1))
    assert [arrival.request_id for arrival in schedule] == list(range(len(schedule)))
    assert all(a.intended_s <= b.intended_s for a, b in pairwise(schedule))
    assert {arrival.agent_id for arrival in schedule} == {0, 1, 2}


def test_rounds_are_counted(settings: dict[str, dict]) -> None:
    schedule = make({"kind": "synchronized", "rounds": 3, "period_s": 2}).schedule(2, np.random.default_rng(1))
    assert [(a.intended_s, a.round) for a in schedule] == [(0, 0), (0, 0), (2, 1), (2, 1), (4, 2), (4, 2)]


def test_poisson_has_its_rate_and_its_variance() -> None:
    process = make({"kind": "poisson", "rate_per_s": 2, "duration_s": 1000})
    times = [a.intended_s for a in process.schedule(4, np.random.default_rng(3))]
    assert len(times) == pytest.approx(8000, abs=4 * 8000**0.5)
    gaps = np.diff(times)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.05), "exponential gaps"
    assert max(times) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t,a\n", "a.csv:1: the first line must be 't_s,agent'"),
        ("t_s,agent\n0,0\nsoon,1\n", "a.csv:3: 'soon,1' is not"),
        ("t_s,agent\n0,-1\n", "a.csv:2"),
        ("t_s,agent\n0,1,2\n", "a.csv:2"),
        ("t_s,agent\n", "no arrivals"),
    ],
)
def test_trace_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValidationError) as error:
        make({"kind": "trace", "path": str(tmp_path / "a.csv")})
    assert message in str(error.value)


def test_trace_with_an_agent_too_many(settings: dict[str, dict]) -> None:
    with pytest.raises(ArrivalTraceError, match="agent 2, but the scenario has agents 0 to 1"):
        make({"kind": "trace", **settings["trace"]}).schedule(2, np.random.default_rng(1))


def bursts_of(schedule: list[Arrival], apart_s: float) -> list[list[Arrival]]:
    """Arrivals that are closer together than `apart_s`, where bursts are much further apart."""
    found = [[schedule[0]]]
    for before, arrival in pairwise(schedule):
        if arrival.intended_s - before.intended_s > apart_s:
            found.append([])
        found[-1].append(arrival)
    return found


def test_bursts_have_their_mean_size_and_ask_each_agent_once() -> None:
    process = make({"kind": "bursts", "rate_per_s": 0.01, "size": 4, "spread_s": 0.2, "duration_s": 200_000})
    bursts = bursts_of(process.schedule(1000, np.random.default_rng(5)), 0.2)
    # Two bursts may coincide; hardly any do at 100 s from one to the next.
    assert len(bursts) == pytest.approx(2000, abs=4 * 2000**0.5 + 10)
    sizes = [len(burst) for burst in bursts]
    assert np.mean(sizes) == pytest.approx(4, rel=0.1)
    assert np.std(sizes) == pytest.approx(12**0.5, rel=0.15), "geometric"
    twice = [burst for burst in bursts if len({arrival.agent_id for arrival in burst}) < len(burst)]
    assert len(twice) <= 0.01 * len(bursts), "only where two bursts coincide"
    spreads_s = [burst[-1].intended_s - burst[0].intended_s for burst in bursts if len(burst) > 5]
    assert 0.1 < np.mean(spreads_s) < 0.2, "anywhere within it"
    gaps_s = np.diff([burst[0].intended_s for burst in bursts])
    assert np.std(gaps_s) == pytest.approx(np.mean(gaps_s), rel=0.1), "bursts are Poisson"
    assert all(arrival.round == -1 for burst in bursts for arrival in burst)


@pytest.mark.parametrize(("size", "least", "most"), [(1, 1, 1), (100_000, 3, 3), (2, 1, 3)])
def test_a_burst_is_never_more_than_all_agents(size: float, least: int, most: int) -> None:
    process = make({"kind": "bursts", "rate_per_s": 1e-4, "size": size, "spread_s": 0, "duration_s": 1e6})
    schedule = process.schedule(3, np.random.default_rng(2))
    at: dict[float, list[int]] = {}
    for arrival in schedule:
        at.setdefault(arrival.intended_s, []).append(arrival.agent_id)
    assert len(at) > 50, "without spread a burst is one moment"
    assert all(len(set(agents)) == len(agents) for agents in at.values())
    assert {min(map(len, at.values())), max(map(len, at.values()))} == {least, most}
    assert {arrival.agent_id for arrival in schedule} == {0, 1, 2}


@pytest.mark.parametrize(
    "wrong", [{"size": 0.5}, {"rate_per_s": 0}, {"spread_s": -1}, {"duration_s": 0}, {"period": 1}]
)
def test_wrong_bursts_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        make({"kind": "bursts", "rate_per_s": 1, "size": 2, "duration_s": 30} | wrong)
