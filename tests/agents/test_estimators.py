"""Estimators keep their contract; causal ones are blind to the present."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from agents.estimators import ESTIMATORS, AnyEstimator, EstimatorSettings, Ewma

CAUSAL = {"ewma", "fixed"}
rates = st.lists(st.floats(0.1, 1000), min_size=1, max_size=20)


def make(kind: str) -> EstimatorSettings:
    return TypeAdapter(AnyEstimator).validate_python({"kind": kind} | ({"mbps": 7} if kind == "fixed" else {}))


@pytest.mark.parametrize("kind", ESTIMATORS)
@given(past=rates, now=st.floats(0.1, 1000))
def test_only_those_named_so_look_ahead(kind: str, past: list[float], now: float) -> None:
    blind, seeing = make(kind), make(kind)
    for mbps in past:
        for each in (blind, seeing):
            each.report(mbps)
    seeing.peek(now)
    assert seeing.estimate() > 0
    if kind in CAUSAL:
        assert seeing.estimate() == blind.estimate()


def test_ewma_as_published() -> None:
    ewma = Ewma()
    ewma.report(100)
    assert ewma.estimate() == pytest.approx(80)
    ewma.report(50)
    assert ewma.estimate() == pytest.approx(0.8 * (0.3 * 50 + 0.7 * 100))


def test_published_ewma_has_seen_the_rate_it_decides_for() -> None:
    published = make("published_ewma")
    published.report(100)
    published.peek(100)
    published.report(100)
    published.peek(50)
    assert published.estimate() == pytest.approx(0.8 * (0.3 * 50 + 0.7 * 100))


def test_oracle_knows_the_present() -> None:
    oracle = make("oracle")
    oracle.report(10)
    oracle.peek(33)
    assert oracle.estimate() == 33


def seen(kind: str, past: list[float], now: float | None = None) -> EstimatorSettings:
    """An estimator that has had these reports; after each it may peek at the rate that then began."""
    made = make(kind)
    for mbps in past:
        made.report(mbps)
        made.peek(mbps)
    if now is not None:
        made.peek(now)
    return made


@pytest.mark.parametrize("kind", ESTIMATORS)
@given(past=rates, now=st.floats(0.1, 1000))
def test_a_spread_is_ascending_positive_and_as_blind_as_its_estimate(kind: str, past: list[float], now: float) -> None:
    spread = list(seen(kind, past).spread())
    assert spread == sorted(spread) and spread[0] > 0
    if kind in CAUSAL:
        assert spread == list(seen(kind, past, now).spread())
    if kind in ("fixed", "oracle"):
        assert spread == [seen(kind, past).estimate()], "no doubt"
    else:
        assert len(spread) > 1


@pytest.mark.parametrize("kind", ["ewma", "published_ewma"])
@given(past=rates, scale=st.sampled_from([0.5, 2.0, 8.0]))
def test_a_spread_scales_with_the_channel(kind: str, past: list[float], scale: float) -> None:
    scaled = [mbps * scale for mbps in past]
    expected = [mbps * scale for mbps in seen(kind, past).spread()]
    assert list(seen(kind, scaled).spread()) == pytest.approx(expected)


def test_a_spread_learns_what_the_channel_is_like() -> None:
    steady = seen("ewma", [50.0] * 300).spread()
    assert list(steady) == pytest.approx([50.0] * len(steady)), "outages that never come are forgotten"
    # Every fifth report an outage: about as much of the spread foresees one.
    shaky = seen("ewma", [2.0 if number % 5 == 0 else 50.0 for number in range(1, 301)]).spread()
    assert sum(mbps < 10 for mbps in shaky) / len(shaky) == pytest.approx(0.2, abs=0.07)
    assert max(shaky) > 40


def test_a_window_s_spread_is_that_of_its_mean() -> None:
    """Fifty and nothing by turns: a report can be either, two in a row are always 25; an outage of four stays one."""
    by_turns = seen("ewma", [50.0, 0.01] * 150)
    assert min(by_turns.spread(1)) < 1 and max(by_turns.spread(1)) > 40
    near = [mbps for mbps in by_turns.spread(2) if 17 < mbps < 36]
    assert len(near) == len(by_turns.spread(2)), "what differs is only the mean before"
    assert max(by_turns.spread(2)) / min(by_turns.spread(2)) < 2
    outages = seen("ewma", ([50.0] * 16 + [0.01] * 4) * 15).spread(4)
    assert min(outages) < 1, "windows are as they were: the whole of one can be an outage"


def test_copies_learn_apart() -> None:
    one = seen("ewma", [50.0] * 3)
    other = one.model_copy(deep=True)
    before = list(one.spread())
    other.report(1)
    assert list(one.spread()) == before != list(other.spread())


@pytest.mark.parametrize("kind", sorted(set(ESTIMATORS) - {"fixed"}))
def test_a_spread_needs_a_report(kind: str) -> None:
    with pytest.raises(RuntimeError, match="one report first"):
        make(kind).spread()


@pytest.mark.parametrize("kind", sorted(set(ESTIMATORS) - {"fixed"}))
def test_an_estimate_needs_a_report(kind: str) -> None:
    with pytest.raises(RuntimeError, match="one report first"):
        make(kind).estimate()
