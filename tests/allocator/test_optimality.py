"""How good the policies are: optimal against everything there is, deadline against optimal, greedy never above it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocator.bruteforce import brute_force
from allocator.few import few_choice
from allocator.instances import draw_problem
from allocator.policies.deadline import near_choice
from allocator.policies.greedy import greedy_choice
from allocator.policies.optimal import exact_choice
from allocator.problem import Problem, Transfer
from allocator.rows import rows_of

seeds = st.integers(0, 2**32 - 1)
fast = settings(max_examples=60, deadline=None)


def drawn(seed: int, most: int, cloud: bool) -> Problem:
    rng = np.random.default_rng(seed)
    return draw_problem(rng, int(rng.integers(1, most + 1)), cloud)


@pytest.mark.parametrize("cloud", [False, True], ids=["one budget", "two budgets"])
@fast
@given(seed=seeds)
def test_optimal_is_as_good_as_trying_everything(cloud: bool, seed: int) -> None:
    problem = drawn(seed, 6, cloud)
    rows = rows_of(problem)
    exact = exact_choice(rows)
    assert rows.fits(exact.choice)
    assert rows.worth(exact.choice) == pytest.approx(brute_force(problem), rel=1e-9)
    assert exact.weight_bound == pytest.approx(rows.worth(exact.choice)[0])


@pytest.mark.parametrize("cloud", [False, True], ids=["one budget", "two budgets"])
@fast
@given(seed=seeds)
def test_a_few_requests_are_solved_exactly(cloud: bool, seed: int) -> None:
    problem = drawn(seed, 3, cloud)
    rows = rows_of(problem)
    found = few_choice(problem)
    assert found is not None
    chosen, kept = found
    choice = [r.options.index(o) if o else -1 for r, o in zip(problem.requests, chosen, strict=True)]
    whole = np.array(choice + [0 if k else -1 for k in kept])
    assert rows.fits(whole)
    assert rows.worth(whole) == pytest.approx(brute_force(problem), rel=1e-9)


@pytest.mark.parametrize("cloud", [False, True], ids=["one budget", "two budgets"])
@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_deadline_is_near_optimal_and_greedy_is_no_better(cloud: bool, seed: int) -> None:
    rows = rows_of(drawn(seed, 24, cloud))
    exact = exact_choice(rows, limit_s=1.0)
    near, greedy = near_choice(rows), greedy_choice(rows)
    assert rows.fits(near) and rows.fits(greedy)
    assert rows.worth(near)[0] == pytest.approx(rows.worth(exact.choice)[0])
    assert rows.worth(greedy)[0] <= exact.weight_bound * (1 + 1e-6)
    # One in a thousand is what holds on nearly all problems, and what the bench counts.
    assert rows.worth(near)[1] >= rows.worth(exact.choice)[1] * 0.98
    if rows.worth(greedy)[0] == rows.worth(exact.choice)[0]:
        assert rows.worth(greedy)[1] <= exact.quality_bound * (1 + 1e-6)


def test_alike_rows_are_merged_and_split_again() -> None:
    transfers = tuple(Transfer(i, i, 1e6, 1000.0) for i in range(7))  # 8 Mbit/s each
    rows = rows_of(Problem(40.0, (), (), transfers))
    assert rows.worth(exact_choice(rows).choice) == (5, 0)
    assert rows.worth(near_choice(rows)) == (5, 0)
    assert rows.worth(greedy_choice(rows)) == (5, 0)
