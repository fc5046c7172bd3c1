"""F1 and exact match as SQuAD's official script gives them; intervals that hold the mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.f1 import exact_match, mean_interval, normalise, token_f1

words = st.lists(st.sampled_from(["gawo", "corin", "the", "A", "pason.", "x"]), max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Gawo,\nCorin!", "gawo corin"),
        ("an apple a day", "apple day"),
        ("U.S.A.", "usa"),
        ("the.", ""),  # punctuation goes first, so this is an article by then
        ("theatre another", "theatre another"),  # whole words only
        ("it's", "its"),
        ("twenty-one", "twentyone"),
        ("", ""),
    ],
)
def test_normalised_as_officially(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


@pytest.mark.parametrize(
    ("answer", "references", "f1", "exact"),
    [
        ("the Gawo corin", ["gawo corin"], 1, True),
        ("gawo", ["gawo corin"], 2 / 3, False),
        ("gawo tipun", ["gawo corin"], 0.5, False),
        ("corin gawo", ["gawo corin"], 1, False),  # a bag of tokens
        ("gawo gawo", ["gawo"], 2 / 3, False),  # counted once
        ("nowhere", ["gawo corin"], 0, False),
        ("", ["gawo"], 0, False),
        ("the", ["a"], 1, True),  # both nothing
        ("gawo", ["the"], 0, False),
        ("corin", ["gawo", "the corin"], 1, True),  # the best of the references
        ("", [], 1, True),  # no answer to a question that has none
        ("gawo", [], 0, False),
    ],
)
def test_known_scores(answer: str, references: list[str], f1: float, exact: bool) -> None:
    assert token_f1(answer, references) == pytest.approx(f1)
    assert exact_match(answer, references) is exact


@given(words, words)
def test_f1_is_symmetric_and_bounded(one: str, other: str) -> None:
    assert token_f1(one, [other]) == token_f1(other, [one])
    assert 0 <= token_f1(one, [other]) <= 1
    assert token_f1(one, [one]) == 1


def test_intervals_cover_as_often_as_they_say() -> None:
    """95 % intervals of 60 draws: about 95 of 100 hold the true mean."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        low, high = mean_interval(rng.binomial(1, 0.7, 60).tolist(), rng, resamples=300)
        held += low <= 0.7 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_interval_of_little() -> None:
    rng = np.random.default_rng(0)
    assert mean_interval([0.5], rng) == mean_interval([0.5, 0.5], rng) == (0.5, 0.5)
    with pytest.raises(ValueError, match="no scores"):
        mean_interval([], rng)
