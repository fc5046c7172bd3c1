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


@pytest.mark.parametrize("kind", sorted(set(ESTIMATORS) - {"fixed"}))
def test_an_estimate_needs_a_report(kind: str) -> None:
    with pytest.raises(RuntimeError, match="one report first"):
        make(kind).estimate()
