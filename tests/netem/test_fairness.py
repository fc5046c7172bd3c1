"""Max-min fair shares and Jain's index."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netem.fairness import jain_index, max_min_shares

AMOUNTS = st.floats(0, 1e9, allow_subnormal=False).map(lambda amount: round(amount, 6))  # finer than any rate
CAPS = st.lists(AMOUNTS, max_size=50)


def test_known_sharing() -> None:
    assert max_min_shares(10, [2, 8, 10]) == [2, 4, 4]
    assert max_min_shares(100, [2, 8, 10]) == [2, 8, 10]
    assert max_min_shares(10, []) == []


@given(AMOUNTS, CAPS)
def test_nothing_is_wasted_or_made_up(total: float, caps: list[float]) -> None:
    assert sum(max_min_shares(total, caps)) == pytest.approx(min(total, sum(caps)), rel=1e-9, abs=1e-9)


@given(AMOUNTS, CAPS)
def test_whoever_gets_less_than_the_cap_gets_as_much_as_anybody(total: float, caps: list[float]) -> None:
    shares = max_min_shares(total, caps)
    for share, cap in zip(shares, caps, strict=True):
        assert 0 <= share <= cap
        assert share == cap or share >= max(shares) * (1 - 1e-9)


@given(AMOUNTS, CAPS)
def test_order_does_not_matter(total: float, caps: list[float]) -> None:
    backwards = max_min_shares(total, caps[::-1])[::-1]
    assert max_min_shares(total, caps) == pytest.approx(backwards, rel=1e-9, abs=1e-9)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        max_min_shares(-1, [1])
    with pytest.raises(ValueError, match="negative"):
        max_min_shares(1, [-1])


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50))
def test_jain_is_between_one_nth_and_one(values: list[float]) -> None:
    assert 1 / len(values) - 1e-9 <= jain_index(values) <= 1 + 1e-9


def test_jain_known_values() -> None:
    assert jain_index([3, 3, 3]) == pytest.approx(1)
    assert jain_index([1, 0, 0, 0]) == pytest.approx(0.25)
    assert jain_index([]) == jain_index([0.0]) == 1
