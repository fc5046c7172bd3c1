"""EDF with lost jobs last, batches of one decoder, and predictions that agree with the service that follows."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from allocator.online.interfaces import CloudJob
from cloud.schedule import Schedule, batch_ms


def filled(*jobs: tuple[float, float], batch: int = 1) -> Schedule[int]:
    """With jobs (deadline in s, decode time in ms) numbered from 0."""
    return scheduled([CloudJob(deadline_s, 0, cost_ms) for deadline_s, cost_ms in jobs], batch)


def scheduled(jobs: Sequence[CloudJob], batch: int = 1) -> Schedule[int]:
    schedule: Schedule[int] = Schedule(batch)
    for number, job in enumerate(jobs):
        schedule.add(number, job)
    return schedule


def emptied(schedule: Schedule[int], at_s: float = 0.0) -> list[int]:
    """The order of service if all service took no time."""
    return [number for _ in range(len(schedule)) if len(schedule) for number in schedule.begin(at_s)]


def test_earliest_deadline_first_then_the_shortest_then_the_first_that_came() -> None:
    assert emptied(filled((3, 10), (1, 10), (2, 10), (1, 20), (1, 5), (1, 10), (2, 1))) == [4, 1, 5, 3, 6, 2, 0]


def test_jobs_that_can_no_longer_meet_their_deadline_are_served_last() -> None:
    jobs = (1.0, 100), (1.2, 100), (2.0, 100), (1.05, 100)
    assert emptied(filled(*jobs), at_s=1.0) == [1, 2, 0, 3], "the lost ones in order of their deadlines"


def test_a_job_that_ends_exactly_at_its_deadline_meets_it() -> None:
    assert filled((1.0, 300), (2.0, 100)).begin(0.7) == [0]
    assert filled((1.0, 300), (2.0, 100)).begin(0.701) == [1]


def test_looking_at_a_schedule_changes_nothing() -> None:
    looked_at, other = filled((0.1, 50), (0.3, 50), (5, 50)), filled((0.1, 50), (0.3, 50), (5, 50))
    for at_s in (0, 0.2, 1):
        looked_at.before_ms(1, at_s), looked_at.blocking_ms(1, at_s), looked_at.ready_s(0, at_s)
        looked_at.queue_ms(at_s, {})
    for schedule in (looked_at, other):
        schedule.add(9, CloudJob(0.05, 0, 50))
    assert emptied(looked_at, 1) == emptied(other, 1) == [2, 9, 0, 1]


def test_a_batch_is_the_next_jobs_of_one_decoder() -> None:
    jobs = [CloudJob(1 + n, 0, 10, decoder) for n, decoder in enumerate("aabaaaa")]
    schedule = scheduled(jobs, batch=3)
    assert [schedule.begin(0) for _ in range(4)] == [[0, 1], [2], [3, 4, 5], [6]]


def test_a_batch_prefills_one_after_the_other_and_decodes_together() -> None:
    jobs = [CloudJob(9, 20, 100), CloudJob(9, 30, 50), CloudJob(9, 0, 70)]
    assert batch_ms(jobs) == 150
    assert batch_ms(jobs[:1]) == jobs[0].cost_ms == 120
    schedule = scheduled(jobs, batch=8)
    assert schedule.queue_ms(0, {}) == pytest.approx(150)
    schedule.begin(2)
    assert (schedule.busy_until_s, len(schedule)) == (2.15, 0)
    assert (schedule.left_ms(2.05), schedule.left_ms(3)) == (pytest.approx(100), 0)
    schedule.end()
    assert schedule.left_ms(2.05) == 0


def test_removing_clearing_and_putting_back() -> None:
    schedule = filled((3, 10), (1, 10), (2, 10))
    schedule.remove(2)
    schedule.remove(7)
    assert schedule.queued == [1, 0]
    assert schedule.begin(0) == schedule.serving == [1]
    schedule.put_back()
    assert (schedule.serving, schedule.queued) == ([], [1, 0])
    schedule.begin(0)
    assert (schedule.clear(), schedule.clear(), schedule.serving) == (1, 0, [1])


def test_work_before_a_deadline_and_work_that_blocks_it() -> None:
    schedule = filled((2, 100), (1, 40), (3, 7))
    assert [schedule.before_ms(deadline_s, 0) for deadline_s in (0.5, 1, 1.5, 2, 9)] == [0, 40, 40, 140, 147]
    assert [schedule.blocking_ms(deadline_s, 0) for deadline_s in (0.5, 1, 1.5)] == [40, 0, 0], "only the next one"
    # At 1.5 s the second job is lost.
    assert [schedule.before_ms(deadline_s, 1.5) for deadline_s in (0.5, 1.5, 2, 9)] == [0, 0, 100, 107]
    assert [schedule.blocking_ms(deadline_s, 1.5) for deadline_s in (0.5, 1.5, 2)] == [100, 100, 0]
    assert [schedule.begin(1.5), schedule.begin(1.5)] == [[0], [2]]
    assert (schedule.before_ms(9, 1.5), schedule.blocking_ms(9, 1.5)) == (0, 40), "lost jobs are the least urgent"
    assert filled().before_ms(9, 0) == filled().blocking_ms(0, 0) == 0


def test_no_answer_without_a_job() -> None:
    with pytest.raises(KeyError):
        filled((1, 10)).ready_s(5, 0.0)


# Whole milliseconds, so that many deadlines coincide and sums are exact.
simple_jobs = st.lists(st.tuples(st.integers(0, 2000).map(lambda ms: ms / 1e3), st.integers(1, 400)), max_size=9)
moments = st.integers(0, 2500).map(lambda ms: ms / 1e3)
jobs = st.builds(
    CloudJob,
    st.integers(0, 2000).map(lambda ms: ms / 1e3),
    st.integers(0, 200),
    st.integers(1, 300),
    st.sampled_from("ab"),
)


SHORT = CloudJob(0.0, 0, 1, "a")


def lost_at(at_s: float, jobs: Sequence[tuple[float, float]]) -> set[int]:
    return {n for n, (deadline_s, cost_ms) in enumerate(jobs) if deadline_s - cost_ms / 1e3 < at_s - 1e-6}


@given(simple_jobs, moments)
def test_the_whole_order(jobs: list[tuple[float, int]], at_s: float) -> None:
    lost = lost_at(at_s, jobs)
    assert emptied(filled(*jobs), at_s) == sorted(range(len(jobs)), key=lambda n: (n in lost, *jobs[n], n))


@given(simple_jobs, moments, moments)
def test_what_is_said_to_be_served_first_is_served_first(
    jobs: list[tuple[float, int]], at_s: float, deadline_s: float
) -> None:
    schedule = filled(*jobs)
    before_ms, blocking_ms = schedule.before_ms(deadline_s, at_s), schedule.blocking_ms(deadline_s, at_s)
    order, lost = emptied(schedule, at_s), lost_at(at_s, jobs)
    assert before_ms == sum(jobs[n][1] for n in order if n not in lost and jobs[n][0] <= deadline_s)
    blocks = order and (order[0] in lost or jobs[order[0]][0] > deadline_s)
    assert blocking_ms == (jobs[order[0]][1] if blocks else 0)


@given(simple_jobs)
def test_all_deadlines_are_met_if_any_order_meets_them(jobs: list[tuple[float, int]]) -> None:
    """All jobs there from the start, served in EDF order (Jackson 1955)."""
    end_s, feasible = 0.0, True
    for deadline_s, cost_ms in sorted(jobs):
        end_s += cost_ms / 1e3
        feasible = feasible and end_s <= deadline_s
    schedule, at_s, met = filled(*jobs), 0.0, 0
    while len(schedule):
        (number,) = schedule.begin(at_s)
        at_s = schedule.busy_until_s
        met += at_s <= jobs[number][0] + 1e-6
    if feasible:
        assert met == len(jobs)


@given(st.lists(jobs, max_size=8), st.lists(st.tuples(moments, jobs), max_size=5), st.integers(1, 3), moments)
@example(here=[SHORT], coming=[(0.001, SHORT), (0.0, SHORT)], batch=1, at_s=0.003)  # equal jobs, announced in reverse
def test_predictions_agree_with_the_service_that_follows(
    here: list[CloudJob], coming: list[tuple[float, CloudJob]], batch: int, at_s: float
) -> None:
    """Each job's end is predicted, from any moment before it, as it will be if the later jobs arrive as predicted."""
    later = [(at_s + after_s, 100 + n, job) for n, (after_s, job) in enumerate(coming)]
    schedule = scheduled(here, batch)
    if here:
        schedule.begin(at_s)
    everyone = [*range(len(here)), *(100 + n for n in range(len(coming)))]
    predicted = {number: schedule.ready_s(number, at_s, later) for number in everyone}
    if not coming:
        left_ms = schedule.left_ms(at_s)
        total_ms = left_ms + schedule.queue_ms(at_s + left_ms / 1e3, {})
        assert max(predicted.values(), default=at_s) == pytest.approx(at_s + total_ms / 1e3)
    served: dict[int, float] = {}
    waiting = sorted(later, key=lambda arrival: arrival[:2])
    while schedule.serving or len(schedule) or waiting:
        next_s = waiting[0][0] if waiting else float("inf")
        if schedule.serving and schedule.busy_until_s < next_s:
            at_s = schedule.busy_until_s
            served |= dict.fromkeys(schedule.serving, at_s)
            schedule.end()
        else:
            at_s = next_s
            while waiting and waiting[0][0] == at_s:
                schedule.add(waiting[0][1], waiting.pop(0)[2])
            if schedule.serving and schedule.busy_until_s == at_s:
                served |= dict.fromkeys(schedule.serving, at_s)
                schedule.end()
        if not schedule.serving and len(schedule):
            schedule.begin(at_s)
    assert served == pytest.approx(predicted)
