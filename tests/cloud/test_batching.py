"""Continuous batching: the closed form is the step-by-step rule, and the rule is what inference servers do."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.batching import ContinuousBatch, ContinuousBatching, Later, Served
from models.generation import Generation
from models.lengths import Lengths
from models.profiles import ModelProfile


def generation(kept: int = 100, output: int = 10, **of: object) -> Generation:
    """A sequence whose positions have come, with steps of 10 ms, unless told otherwise."""
    plain = {"decoder": 0, "received": True, "attended": float(kept), "start_ms": 0.0, "token_ms": 1.0, "pair_ms": 0.0}
    return Generation(kept=kept, output_tokens=output, **plain | {"step_ms": 10.0, "position_ms": 0.0} | of)  # type: ignore[arg-type]


def ends(batch: ContinuousBatch[int], by_s: float = 1e9) -> dict[int, Served[int]]:
    batch.advance(by_s)
    batch.take_firsts(by_s)
    return {served.item: served for served in batch.take_done(by_s)}


def test_sequences_share_their_steps() -> None:
    batch: ContinuousBatch[int] = ContinuousBatch(ContinuousBatching())
    batch.add(1, generation(output=10), 9, 0.0)
    batch.add(2, generation(output=4), 9, 0.025)
    found = ends(batch)
    assert found[1].end_s == pytest.approx(0.1), "the second costs the first nothing"
    assert found[2].admitted_s == pytest.approx(0.03), "it joins the step after the one that is on"
    assert found[2].first_token_s == pytest.approx(0.04)
    assert found[2].end_s == pytest.approx(0.07)


def test_what_comes_at_one_moment_is_in_one_step() -> None:
    batch: ContinuousBatch[int] = ContinuousBatch(ContinuousBatching())
    for number in range(3):
        batch.add(number, generation(), 9, 1.0)
    assert [served.end_s for served in ends(batch).values()] == pytest.approx([1.1] * 3)


def test_a_prefill_goes_by_chunks_beside_decoding() -> None:
    batch: ContinuousBatch[int] = ContinuousBatch(ContinuousBatching(step_tokens=64, chunk_tokens=32, slots=4))
    batch.add(1, generation(output=4), 9, 0.0)
    batch.add(2, generation(kept=80, output=2, received=False), 9, 0.0)
    found = ends(batch)
    assert found[1].end_s == pytest.approx(0.040 + 0.080), "three chunks of 32, 32 and 16 tokens at 1 ms"
    assert found[2].decoding_s == pytest.approx(0.110)
    assert (found[2].first_token_s, found[2].end_s) == (pytest.approx(0.120), pytest.approx(0.130))


def test_more_than_the_slots_wait_in_order() -> None:
    for order, second in (("edf", 3), ("fcfs", 2)):
        batch: ContinuousBatch[int] = ContinuousBatch(ContinuousBatching(slots=1, order=order))
        for number, deadline_s in ((1, 5.0), (2, 4.0), (3, 3.0), (4, 0.01)):
            batch.add(number, generation(), deadline_s, 0.0)
            batch.advance(1e-6)
        assert batch.begin_in_ms(0.0) > 0
        found = sorted(ends(batch).values(), key=lambda served: served.end_s)
        assert [served.item for served in found][1] == second, "with EDF, what can't be in time comes last"


def test_without_memory_the_last_in_order_is_preempted_and_computed_again() -> None:
    rules = ContinuousBatching(slots=2, kv_tokens=160, block_tokens=16)
    batch: ContinuousBatch[int] = ContinuousBatch(rules)
    batch.add(1, generation(kept=60, output=40), 8, 0.0)
    batch.add(2, generation(kept=60, output=40, received=False), 9, 0.0)
    found = ends(batch)
    assert found[1].preemptions == 0 and found[2].preemptions == 1
    assert found[1].end_s == pytest.approx(0.4 + 0.06), "the prefill of the second was in its first step"
    # It had 19 tokens when the fifth block of either was full; 60 + 19 positions are prefilled again.
    assert found[2].end_s == pytest.approx(found[1].end_s + 0.079 + 0.21)
    with pytest.raises(ValueError, match="180 positions of context and answer are more than fit into KV memory: 160"):
        batch.add(3, generation(kept=100, output=80), 9, 0.0)


@pytest.mark.parametrize(("kept", "waits"), [(783, False), (799, True)])
def test_a_hundredth_of_the_memory_stays_free_for_those_that_grow(kept: int, waits: bool) -> None:
    """Of 100 blocks the first sequence has 50."""
    batch: ContinuousBatch[int] = ContinuousBatch(ContinuousBatching(kv_tokens=1600, block_tokens=16))
    batch.add(1, generation(kept=799, output=10), 8, 0.0)
    batch.add(2, generation(kept=kept, output=10), 9, 0.0)
    batch.advance(1e-6)
    assert batch.waiting == ([2] if waits else [])


def test_a_removed_sequence_leaves_room() -> None:
    batch: ContinuousBatch[int] = ContinuousBatch(ContinuousBatching(slots=1))
    batch.add(1, generation(), 9, 0.0)
    batch.add(2, generation(), 9, 0.0)
    batch.advance(0.015)
    assert (batch.running, batch.waiting) == ([1], [2])
    assert batch.remove(1) and not batch.remove(1)
    assert ends(batch).keys() == {2}
    assert batch.work_ms(5.0) == 0 and batch.next_s() is None


PROFILE = ModelProfile.model_validate(
    {
        "name": "test/sized",
        "kv_bytes": 1000,
        "tokens": 100,
        "edge_prefill_ms": 1,
        "quality_basis": "none",
        "lengths": {
            "contexts": [1, 10_000],
            "edge": {"prefill_token_ms": 1, "step_ms": 1},
            "cloud": {
                "prefill_ms": 3,
                "prefill_token_ms": 0.1,
                "prefill_pair_ns": 40,
                "step_ms": 5,
                "step_position_us": 2,
            },
        },
        "modes": {
            "full": {"payload_bytes": 1000, "decode_ms": 30, "quality": 100},
            "prompt": {"payload_bytes": 50, "cloud_prefill_ms": 20, "decode_ms": 30, "quality": 100},
            "scout@0.3": {"payload_bytes": 50, "cloud_prefill_ms": 20, "decode_ms": 30, "quality": 100},
            "q2c@0.25": {"payload_bytes": 50, "cloud_prefill_ms": 7, "decode_ms": 30, "quality": 100},
        },
    }
)


@pytest.mark.parametrize("mode", PROFILE.modes, ids=str)
@pytest.mark.parametrize("lengths", [None, Lengths(1, 1), Lengths(777, 1), Lengths(3001, 130)])
def test_alone_a_request_takes_what_its_profile_says(mode, lengths) -> None:  # type: ignore[no-untyped-def]
    work = PROFILE.generation_of(mode, lengths)
    prefill_ms, decode_ms = PROFILE.cloud_prefill_of(mode, lengths), PROFILE.decode_of(mode, lengths)
    batch: ContinuousBatch[int] = ContinuousBatch(ContinuousBatching())
    batch.add(1, work, 9e9, 2.0)
    assert batch.serve_ms(work) >= prefill_ms + decode_ms - 1e-6
    served = ends(batch)[1]
    assert (served.decoding_s - 2) * 1e3 == pytest.approx(prefill_ms, abs=1e-6)
    assert (served.end_s - served.decoding_s) * 1e3 == pytest.approx(decode_ms)
    assert work.alone_ms() == pytest.approx(prefill_ms + decode_ms)


@dataclass
class Plain:
    """A sequence of the reference."""

    number: int
    work: Generation
    deadline_s: float
    at_s: float
    generated: int = 0
    computed: int = 0
    admitted_s: float = math.nan
    first_s: float = math.nan
    end_s: float = math.nan
    preemptions: int = 0

    def latest_s(self) -> float:
        return self.deadline_s - self.work.alone_ms(self.generated if self.preemptions else 0) / 1e3


class StepByStep:
    """The rule, one step at a time and one sequence at a time, without any of the shortcuts."""

    def __init__(self, rules: ContinuousBatching) -> None:
        self.rules = rules
        self.running: list[Plain] = []
        self.waiting: list[Plain] = []

    def order(self, each: Plain) -> tuple[float, int]:
        return each.deadline_s if self.rules.order == "edf" else 0.0, each.number

    def blocks(self, each: Plain) -> int:
        return math.ceil((each.work.kept + each.generated + 1) / self.rules.block_tokens)

    def admit(self, at_s: float) -> None:
        while self.waiting and len(self.running) < self.rules.slots:
            self.waiting.sort(key=self.order)
            in_time = [each for each in self.waiting if each.latest_s() >= at_s]
            first = (in_time if self.rules.order == "edf" and in_time else self.waiting)[0]
            if self.rules.blocks is not None and self.running:
                free = self.rules.blocks - sum(map(self.blocks, self.running)) - int(0.01 * self.rules.blocks)
                if self.blocks(first) > free:
                    return
            self.waiting.remove(first)
            self.running.append(first)
            first.computed = first.work.kept if first.work.received else 0
            first.admitted_s = at_s if math.isnan(first.admitted_s) else first.admitted_s

    def step(self, at_s: float) -> float:
        """One step; returns its end."""
        self.running.sort(key=self.order)
        preempted = False
        while self.rules.blocks is not None and sum(map(self.blocks, self.running)) > self.rules.blocks:
            last = self.running.pop()
            last.preemptions += 1
            self.waiting.append(last)
            preempted = True
        if not preempted:
            self.admit(at_s)
        self.running.sort(key=self.order)
        decoding = [each for each in self.running if each.computed == each.work.kept + each.generated]
        budget = self.rules.step_tokens - len(decoding)
        took_ms = 0.0
        slowest: dict[object, float] = {}
        for each in decoding:
            slowest[each.work.decoder] = max(slowest.get(each.work.decoder, 0.0), each.work.step_ms)
            took_ms += each.work.position_ms * (each.work.attended + each.generated)
        took_ms += sum(slowest.values())
        for each in self.running:
            if each not in decoding and budget:
                chunk = min(self.rules.chunk_tokens, each.work.kept + each.generated - each.computed, budget)
                budget -= chunk
                if each.computed == (each.work.kept if each.work.received else 0):
                    took_ms += each.work.start_ms
                took_ms += each.work.prefill_ms(each.computed, each.computed + chunk)
                each.computed += chunk
        end_s = at_s + took_ms / 1e3
        for each in decoding:
            each.generated += 1
            each.computed += 1
            if math.isnan(each.first_s):
                each.first_s = end_s
            if each.generated == each.work.output_tokens:
                each.end_s = end_s
                self.running.remove(each)
        return end_s

    def run(self, asked: list[Plain]) -> None:
        at_s, coming = 0.0, sorted(asked, key=lambda each: each.at_s)
        while coming or self.running or self.waiting:
            if not self.running and not self.waiting:
                at_s = max(at_s, coming[0].at_s)
            while coming and coming[0].at_s <= at_s:
                self.waiting.append(coming.pop(0))
            at_s = self.step(at_s)


works = st.builds(
    generation,
    kept=st.integers(1, 90),
    output=st.integers(1, 40),
    decoder=st.integers(0, 1),
    received=st.booleans(),
    start_ms=st.sampled_from([0.0, 0.0, 2.17]),
    token_ms=st.floats(0.01, 1),
    pair_ms=st.sampled_from([0.0, 0.00113]),
    step_ms=st.floats(0.5, 12),
    position_ms=st.sampled_from([0.0, 0.0173]),
)
asks = st.lists(st.tuples(works, st.floats(0, 0.4), st.floats(0.01, 1.5)), min_size=1, max_size=14)
rules = st.builds(
    ContinuousBatching,
    slots=st.sampled_from([1, 2, 3, 8]),
    step_tokens=st.sampled_from([8, 24, 64]),
    chunk_tokens=st.sampled_from([3, 16, 100]),
    kv_tokens=st.sampled_from([None, 132, 200, 400]),
    block_tokens=st.sampled_from([1, 4, 16]),
    order=st.sampled_from(["edf", "fcfs"]),
)


@settings(deadline=None, max_examples=150)
@given(asks, rules, st.lists(st.floats(0, 2), max_size=8))
def test_the_closed_form_is_the_rule(
    asked: list[tuple[Generation, float, float]], rules: ContinuousBatching, looks: list[float]
) -> None:
    """Step by step and by leaps: the same times for all, however often somebody looks, and predictions come true."""
    asked = [ask for ask in asked if not rules.too_long(ask[0])]
    asked.sort(key=lambda ask: ask[1])
    plain = [Plain(n, work, at_s + slack_s, at_s) for n, (work, at_s, slack_s) in enumerate(asked, 1)]
    StepByStep(rules).run(plain)
    batch: ContinuousBatch[int] = ContinuousBatch(rules)
    moments = [(at_s, n) for n, (_, at_s, _) in enumerate(asked, 1)] + [(at_s, 0) for at_s in looks]
    added: set[int] = set()
    predicted: dict[int, float] = {}
    for at_s, number in sorted(moments):
        if number:
            each = plain[number - 1]
            batch.add(number, each.work, each.deadline_s, at_s)
            added.add(number)
        else:
            batch.advance(at_s)
            later = [Later(p.at_s, p.number, p.work, p.deadline_s) for p in plain if p.number not in added]
            for p in plain:
                if p.number in batch or p.number not in added:
                    predicted[p.number] = batch.ready_s(p.number, at_s, later)
    found = ends(batch)
    for each in plain:
        served = found[each.number]
        times = served.admitted_s, served.first_token_s, served.end_s
        assert times == pytest.approx((each.admitted_s, each.first_s, each.end_s), abs=1e-6)
        assert served.preemptions == each.preemptions
        if len(asked) < 5:  # so many events are followed to the end
            assert predicted.get(each.number, each.end_s) == pytest.approx(each.end_s, abs=1e-6)
    assert batch.work_ms(1e9) == 0


@settings(deadline=None, max_examples=60)
@given(asks, rules, st.floats(0, 1))
def test_work_left_is_what_is_added_and_not_done(
    asked: list[tuple[Generation, float, float]], rules: ContinuousBatching, at_s: float
) -> None:
    """Without preemption: all that was added is done in the end, and never less than nothing is left."""
    rules = rules.model_copy(update={"kv_tokens": None})
    batch: ContinuousBatch[int] = ContinuousBatch(rules)
    for number, (work, came_s, slack_s) in enumerate(sorted(asked, key=lambda ask: ask[1])):
        batch.add(number, work, came_s + slack_s, came_s)
    before_ms = batch.work_ms(1.0)
    batch.advance(1.0 + at_s)
    assert -1e-6 <= batch.work_ms(1.0) <= before_ms + at_s * 1e3 + 1e-6
    for number in list(range(len(asked))):
        batch.remove(number)
    ended = {served.item for served in batch.take_done(1e9)}
    assert ended >= set(batch.take_firsts(1e9)), "who was taken out makes no more news"
    assert batch.work_ms(1e9) == 0 and batch.next_s() is None
