"""Iteration-level (continuous) batching, as inference servers do it (Orca, Yu et al., OSDI 2022; vLLM).

A worker serves by this code, and the dispatcher predicts by it. It is sans-IO: the caller passes the time.
"""

import math
from bisect import insort
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, nsmallest
from typing import Generic, Literal, NamedTuple, Self, TypeVar

from pydantic import Field, model_validator

from configs.settings import Settings
from models.generation import Generation

T = TypeVar("T", bound=Hashable)
ROUNDING_S = 1e-6
# What comes at the very moment at which a step begins is in it: so the step is begun this much later.
TICK_S = 1e-6
# Of the blocks, this share stays free when a sequence is admitted, for those that grow (as in vLLM).
WATERMARK = 0.01
MAX_LEAPS_AHEAD = 16


class ContinuousBatching(Settings):
    """A worker serves many sequences at a time; after every step, others join and those that have ended leave."""

    kind: Literal["continuous"] = "continuous"
    slots: int = Field(default=64, ge=1, le=4096, description="sequences that a worker serves at a time")
    step_tokens: int = Field(default=2048, ge=2, le=1_000_000, description="tokens of one step, decoded and prefilled")
    chunk_tokens: int = Field(default=512, ge=1, le=1_000_000, description="tokens of one prefill in one step")
    kv_tokens: int | None = Field(
        default=None, ge=1, description="positions in a worker's KV memory; default: as many as its slots need"
    )
    block_tokens: int = Field(default=16, ge=1, le=4096, description="positions of one block of KV memory")
    order: Literal["edf", "fcfs"] = Field(
        default="edf", description="who is served first: the earliest deadline, or who came first"
    )

    @model_validator(mode="after")
    def _a_token_for_each(self) -> Self:
        if self.slots > self.step_tokens:
            raise ValueError(f"slots: {self.slots} sequences need as many step_tokens, not {self.step_tokens}")
        return self

    @property
    def blocks(self) -> int | None:
        """Of KV memory; None without a limit."""
        return None if self.kv_tokens is None else self.kv_tokens // self.block_tokens

    @property
    def blocks_tokens(self) -> int:
        """Positions in whole blocks of KV memory; 0 without a limit."""
        return (self.blocks or 0) * self.block_tokens

    def too_long(self, work: Generation) -> str | None:
        """Why a sequence can't be served by an empty worker either; None if it can."""
        needed = work.kept + work.output_tokens
        if self.blocks is None or -(-needed // self.block_tokens) <= self.blocks:
            return None
        return f"{needed} positions of context and answer are more than fit into KV memory: {self.kv_tokens}"


class Served(NamedTuple, Generic[T]):
    """A sequence that has ended.

    Attributes:
        admitted_s, decoding_s: when its first step began, and the first that decoded it.
        first_token_s, end_s: when its first and its last token were there.
        preemptions: how often it lost its KV memory to others.
    """

    item: T
    admitted_s: float
    decoding_s: float
    first_token_s: float
    end_s: float
    preemptions: int


class Later(NamedTuple, Generic[T]):
    """A sequence that will come."""

    at_s: float
    item: T
    work: Generation
    deadline_s: float


@dataclass(slots=True, eq=False)
class _Sequence(Generic[T]):
    """One sequence; sorts in the order of service."""

    order: tuple[float, int]
    item: T
    work: Generation
    deadline_s: float
    latest_s: float  # begun alone after that, it misses its deadline
    generated: int = 0  # before the step `since`
    computed: int = 0  # positions in KV memory while it is prefilled
    since: int = -1  # the step from which on it is decoded; -1: it isn't
    end_step: int = -1
    admitted_s: float = math.nan
    decoding_s: float = math.nan
    first_s: float = math.nan
    preemptions: int = 0

    def __lt__(self, other: "_Sequence[T]") -> bool:
        return self.order < other.order

    @property
    def target(self) -> int:
        """Positions that must be in KV memory before it is decoded (on)."""
        return self.work.kept + self.generated

    @property
    def first_position(self) -> int:
        """Where its prefill begins."""
        return self.work.kept if self.work.received else 0

    def clone(self) -> "_Sequence[T]":
        first = self.order, self.item, self.work, self.deadline_s, self.latest_s, self.generated, self.computed
        times = self.admitted_s, self.decoding_s, self.first_s
        return _Sequence(*first, self.since, self.end_step, *times, self.preemptions)


class _Leap(NamedTuple, Generic[T]):
    """Steps with the same sequences: the first takes `first_ms`, each next one `growth_ms` more than the one before.

    Attributes:
        steps: how many there are at most before something changes; 0 if something must change first.
        chunks: positions that each step prefills, by sequence.
    """

    steps: int
    first_ms: float
    growth_ms: float
    chunks: "list[tuple[_Sequence[T], int]]"

    def ms(self, steps: int) -> float:
        """How long so many steps take."""
        return steps * self.first_ms + self.growth_ms * (steps * (steps - 1) / 2)

    def until(self, span_ms: float) -> int:
        """How many steps begin within the next `span_ms`: at least one, at most `steps`."""
        if self.ms(self.steps - 1) < span_ms:
            return self.steps
        slope = self.first_ms - self.growth_ms / 2
        found = math.ceil(2 * span_ms / (slope + math.sqrt(slope * slope + 2 * self.growth_ms * span_ms)))
        found = max(1, min(found, self.steps))
        while found > 1 and self.ms(found - 1) >= span_ms:
            found -= 1
        while found < self.steps and self.ms(found) < span_ms:
            found += 1
        return found


class ContinuousBatch(Generic[T]):
    """The sequences of one worker: those in its slots, and those that wait.

    Before every step: as long as the positions of the next step don't fit into KV memory, the running sequence that
    comes last in `order` loses its own and waits again (its tokens are kept; their positions are prefilled again).
    If none has lost it, waiting sequences are admitted in `order` while there are slots and memory for all of their
    positions; with EDF, sequences that miss their deadline even if served at once and alone come last. Then each
    sequence that decodes gets one of the step's tokens, and prefills get the rest, in `order`, by chunks.

    The step takes, for each decoder, the longest `step_ms` of its sequences, what all attended positions cost, and the
    chunks of the prefills. While the set of sequences stays as it is, steps are advanced in closed form.
    """

    def __init__(self, rules: ContinuousBatching) -> None:
        self.rules = rules
        self._capacity = rules.blocks
        self._at_s = 0.0  # the end of the last step that has begun
        self._step = 0
        self._ties = 0
        self._sequences: dict[T, _Sequence[T]] = {}
        self._waiting: list[_Sequence[T]] = []
        self._running: list[_Sequence[T]] = []
        self._prefilling: list[_Sequence[T]] = []
        self._ending: list[tuple[int, int, _Sequence[T]]] = []
        self._fresh: list[_Sequence[T]] = []  # the next step makes their first token
        self._settled = True  # nobody who waits can be admitted as it is
        self._reconsider_s = math.inf  # until then
        self._decoding = 0
        self._step_ms: dict[Hashable, dict[float, int]] = {}  # sequences by decoder and step_ms
        self._base_ms = self._attended_ms = self._growth_ms = self._share_ms = 0.0
        self._work_ms = 0.0
        self._blocks = 0  # needed by the next step
        self._phases = [0] * rules.block_tokens  # sequences by the steps after which they need another block
        self._admitted: list[T] = []
        self._firsts: deque[tuple[float, T]] = deque()
        self._done: deque[Served[T]] = deque()

    def __len__(self) -> int:
        """Sequences in slots and waiting."""
        return len(self._sequences)

    def __contains__(self, item: T) -> bool:
        return item in self._sequences

    @property
    def busy(self) -> bool:
        """Whether there are sequences, or some whose end hasn't been taken."""
        return bool(self._sequences or self._firsts or self._done)

    @property
    def waiting(self) -> list[T]:
        """Sequences that wait, in order."""
        return [each.item for each in self._waiting]

    @property
    def running(self) -> list[T]:
        """Sequences in slots, in order."""
        return [each.item for each in self._running]

    def add(self, item: T, work: Generation, deadline_s: float, at_s: float) -> None:
        """A sequence has come; `item` is the caller's name for it. It joins a step that begins at `at_s` or later.

        Raises:
            ValueError: it doesn't fit into KV memory even alone.
        """
        if problem := self.rules.too_long(work):
            raise ValueError(problem)
        self.advance(at_s)
        if not self._sequences:
            self._at_s = max(self._at_s, at_s)
        self._ties += 1
        order = (deadline_s if self.rules.order == "edf" else 0.0, self._ties)
        each = _Sequence(order, item, work, deadline_s, deadline_s - work.alone_ms() / 1e3)
        self._sequences[item] = each
        insort(self._waiting, each)
        self._work_ms += work.added_ms(self.rules.slots)
        self._settled = False

    def remove(self, item: T) -> bool:
        """Take a sequence out, if it is there, from the next step on. Returns whether it was there."""
        each = self._sequences.get(item)
        if each is None:
            return False
        self._forget(each)
        return True

    def clear(self) -> int:
        """Forget all that wait and have never been admitted; returns how many there were."""
        never = [each for each in self._waiting if math.isnan(each.admitted_s)]
        for each in never:
            self._forget(each)
        return len(never)

    def stall(self, until_s: float) -> None:
        """No further step begins before `until_s`."""
        self._at_s = max(self._at_s, until_s)

    def has_news(self, by_s: float) -> bool:
        """Whether the methods that take have something to give."""
        by_s += ROUNDING_S / 2
        ended = bool(self._done and self._done[0].end_s <= by_s)
        return ended or bool(self._admitted) or bool(self._firsts and self._firsts[0][0] <= by_s)

    def take_admitted(self) -> list[T]:
        """Who has been admitted since the last call."""
        admitted, self._admitted = self._admitted, []
        return admitted

    def take_firsts(self, by_s: float) -> list[T]:
        """Whose first token has been made by then, each once, in order of time."""
        found = []
        while self._firsts and self._firsts[0][0] <= by_s + ROUNDING_S / 2:
            found.append(self._firsts.popleft()[1])
        return found

    def take_done(self, by_s: float) -> list[Served[T]]:
        """Who has ended by then, each once, in order of time."""
        found = []
        while self._done and self._done[0].end_s <= by_s + ROUNDING_S / 2:
            found.append(self._done.popleft())
        return found

    def next_s(self) -> float | None:
        """When to call `advance` and the methods that take next, if nothing comes before; None: not at all."""
        if self._firsts or self._done:
            first_s = self._firsts[0][0] if self._firsts else math.inf
            return min(first_s, self._done[0].end_s) if self._done else first_s
        if not self._sequences:
            return None
        if self._waiting and not self._settled:
            return self._at_s + TICK_S
        leap = self._leap()
        steps = min(leap.steps, 1) if self._fresh else leap.steps
        return self._at_s + (leap.ms(steps) / 1e3 if steps else TICK_S)

    def advance(self, to_s: float) -> None:
        """Make all steps that begin before `to_s`."""
        while self._at_s < to_s and self._sequences:
            leap = self._plan()
            self._make(leap, leap.until((to_s - self._at_s) * 1e3))

    def work_ms(self, at_s: float) -> float:
        """What is left of the work that all sequences add, counted from `at_s` on: see `Generation.added_ms`."""
        return max(0.0, self._at_s - at_s) * 1e3 + max(0.0, self._work_ms) if self._sequences else 0.0

    def begin_in_ms(self, at_s: float, more: int = 0) -> float:
        """How long another sequence waits for a slot, if `more` others come before it; memory is not considered."""
        short = len(self._sequences) + more + 1 - self.rules.slots
        if short <= 0:
            return 0.0
        ends = nsmallest(short, (each.end_step - self._step for each in self._running if each.end_step >= 0))
        steps = ends[-1] if ends else 0
        return max(0.0, self._at_s - at_s) * 1e3 + steps * (self._base_ms + self._attended_ms)

    def first_ms(self, work: Generation) -> float:
        """As `serve_ms`, until its first token."""
        return self.serve_ms(work._replace(output_tokens=1))

    def serve_ms(self, work: Generation) -> float:
        """About how long a sequence takes from its admission on, among those that are running now.

        At least the time that it takes alone. What ends before it and what comes after it is not considered.
        """
        tops = {decoder: max(counts) for decoder, counts in self._step_ms.items()}
        tops[work.decoder] = max(work.step_ms, tops.get(work.decoder, 0.0))
        others_ms = self._attended_ms + self._growth_ms * work.output_tokens / 2
        ahead_ms = sum(each.work.prefill_ms(each.computed, each.target) for each in self._prefilling)
        decode_ms = work.output_tokens * (sum(tops.values()) + others_ms) + work.positions_ms()
        tokens = 0 if work.received else work.kept
        chunk = max(1, min(self.rules.chunk_tokens, self.rules.step_tokens - self._decoding))
        between_ms = -(-tokens // chunk) * (self._base_ms + self._attended_ms)
        return work.before_decoding_ms() + between_ms + ahead_ms + decode_ms

    def ready_s(self, item: T, at_s: float, later: Iterable[Later[T]] = ()) -> float:
        """When a sequence has its last token, if nothing else comes.

        The same code runs ahead on a copy, event by event; after 16 of them the rest is reckoned with the sequences
        that are left.

        Args:
            later: those that will come after `at_s`, in any order.

        Raises:
            KeyError: no such sequence is here or will come.
        """
        self.advance(at_s)
        ahead = self._copy()
        for each in sorted(later, key=lambda coming: coming.at_s):
            ahead.add(each.item, each.work, each.deadline_s, max(each.at_s, at_s))
        found = ahead._sequences.get(item)
        for _ in range(MAX_LEAPS_AHEAD):
            for served in ahead._done:
                if served.item == item:
                    return served.end_s
            if found is None:
                raise KeyError(item)
            ahead._done.clear()
            leap = ahead._plan()
            ahead._make(leap, leap.steps)
        for served in ahead._done:
            if served.item == item:
                return served.end_s
        assert found is not None
        return ahead._at_s + ahead._left_ms(found) / 1e3

    def _left_ms(self, each: _Sequence[T]) -> float:
        """About how long the rest of a sequence takes, with the sequences that are here now."""
        if each.since < 0:
            wait_ms = self.begin_in_ms(self._at_s) if each in self._waiting else 0.0
            return wait_ms + self.serve_ms(each.work)
        steps = each.end_step - self._step
        return steps * (self._base_ms + self._attended_ms) + self._growth_ms * steps * (steps - 1) / 2

    # Between two steps.

    def _plan(self) -> _Leap[T]:
        """Settle who is in the next step."""
        preempted = self._preempt()
        if self._at_s > self._reconsider_s:
            self._settled = False
        if not preempted and not self._settled:
            self._admit()
        leap = self._leap()
        return leap._replace(steps=1) if preempted else leap

    def _preempt(self) -> bool:
        """Take KV memory from the last in order until the next step's positions fit."""
        preempted = False
        while self._capacity is not None and self._blocks > self._capacity:
            each = self._running[-1]
            self._leave(each)
            each.preemptions += 1
            each.latest_s = each.deadline_s - each.work.alone_ms(each.generated) / 1e3
            self._work_ms += each.work.before_decoding_ms(each.generated)
            insort(self._waiting, each)
            self._settled, preempted = False, True
        return preempted

    def _admit(self) -> None:
        self._settled, self._reconsider_s = True, math.inf
        while self._waiting and len(self._running) < self.rules.slots:
            each = self._next()
            if not self._fits(each):
                if self.rules.order == "edf" and each.latest_s >= self._at_s:
                    self._reconsider_s = each.latest_s
                return
            self._waiting.remove(each)
            self._begin(each)

    def _next(self) -> _Sequence[T]:
        """Who is admitted first."""
        if self.rules.order == "edf":
            for each in self._waiting:
                if each.latest_s >= self._at_s:
                    return each
        return self._waiting[0]

    def _fits(self, each: _Sequence[T]) -> bool:
        if self._capacity is None or not self._running:
            return True
        free = self._capacity - self._blocks - int(WATERMARK * self._capacity)
        return self._blocks_of(each.target + 1) <= free

    def _blocks_of(self, positions: int) -> int:
        return -(-positions // self.rules.block_tokens)

    def _begin(self, each: _Sequence[T]) -> None:
        """Give a sequence a slot, and memory for all of its positions."""
        if math.isnan(each.admitted_s):
            each.admitted_s = self._at_s
            self._admitted.append(each.item)
        each.computed = each.first_position
        self._blocks += self._blocks_of(each.target + 1)
        insort(self._running, each)
        if each.computed < each.target:
            insort(self._prefilling, each)
        else:
            self._decode(each)

    def _decode(self, each: _Sequence[T]) -> None:
        """All of its positions are there: it is decoded from the next step on."""
        work = each.work
        each.since, each.end_step = self._step, self._step + work.output_tokens - each.generated
        if math.isnan(each.decoding_s):
            each.decoding_s = self._at_s
        if math.isnan(each.first_s):
            self._fresh.append(each)
        heappush(self._ending, (each.end_step, each.order[1], each))
        self._count(each, 1)
        self._attended_ms += work.position_ms * (work.attended + each.generated)
        self._phases[(each.since - each.target - 1) % self.rules.block_tokens] += 1

    def _count(self, each: _Sequence[T], number: int) -> None:
        """A sequence begins (1) or ceases (-1) to be decoded."""
        work = each.work
        self._decoding += number
        self._growth_ms += number * work.position_ms
        self._share_ms += number * work.step_ms / self.rules.slots
        counts = self._step_ms.setdefault(work.decoder, {})
        counts[work.step_ms] = counts.get(work.step_ms, 0) + number
        if not counts[work.step_ms]:
            del counts[work.step_ms]
            if not counts:
                del self._step_ms[work.decoder]
        self._base_ms = sum([max(counts) for counts in self._step_ms.values()])

    def _leave(self, each: _Sequence[T]) -> None:
        """Take a sequence's slot and memory."""
        self._running.remove(each)
        if each.since < 0:
            self._prefilling.remove(each)
            self._work_ms -= each.work.prefill_ms(each.computed, each.target)
            if each.computed == each.first_position:
                self._work_ms -= each.work.start_ms
        else:
            self._phases[(each.since - each.target - 1) % self.rules.block_tokens] -= 1
            each.generated += self._step - each.since
            each.since = each.end_step = -1
            self._attended_ms -= each.work.position_ms * (each.work.attended + each.generated)
            self._count(each, -1)
            if not self._decoding:  # rounding errors don't add up
                self._attended_ms = self._growth_ms = self._share_ms = 0.0
            if math.isnan(each.first_s):
                self._fresh.remove(each)
        self._blocks -= self._blocks_of(each.target + 1)
        self._settled = False

    def _forget(self, each: _Sequence[T]) -> None:
        if each in self._waiting:
            self._waiting.remove(each)
            self._work_ms -= each.work.before_decoding_ms(each.generated)
        else:
            self._leave(each)
        self._work_ms -= each.work.step_ms * (each.work.output_tokens - each.generated) / self.rules.slots
        self._work_ms -= each.work.positions_ms(each.generated)
        del self._sequences[each.item]
        self._firsts = deque(first for first in self._firsts if first[1] != each.item)
        self._settled = False
        if not self._sequences:
            self._work_ms = 0.0

    # Steps.

    def _leap(self) -> _Leap[T]:
        """The steps until something changes."""
        while self._ending and self._ending[0][2].end_step != self._ending[0][0]:
            heappop(self._ending)  # it has left
        steps = self._ending[0][0] - self._step if self._ending else 10**9
        first_ms, growth_ms = self._base_ms + self._attended_ms, self._growth_ms
        budget = self.rules.step_tokens - self._decoding
        chunks = []
        for each in self._prefilling:
            if not budget:
                break
            work, done, left = each.work, each.computed, each.target - each.computed
            chunk = min(self.rules.chunk_tokens, left, budget)
            budget -= chunk
            chunks.append((each, chunk))
            first_ms += work.prefill_ms(done, done + chunk)
            growth_ms += 2 * work.pair_ms * chunk * chunk
            steps = min(steps, left // chunk)
            if done == each.first_position and work.start_ms:
                first_ms += work.start_ms
                steps = 1
        leap = _Leap(self._in_memory(steps), first_ms, growth_ms, chunks)
        if leap.steps > 1 and self._at_s <= self._reconsider_s < math.inf:
            span_ms = (self._reconsider_s - self._at_s) * 1e3 + 1e-6
            leap = leap._replace(steps=leap.until(span_ms))
        return leap

    def _in_memory(self, most: int) -> int:
        """How many steps, `most` at most, can be made before the positions of one don't fit."""
        if self._capacity is None:
            return most
        free, size = self._capacity - self._blocks, self.rules.block_tokens
        if free < 0:
            return 0
        if free >= self._decoding * (most // size + 1):
            return most
        rounds, free = divmod(free, self._decoding)
        steps = rounds * size + 1
        for phase in range(size):
            free -= self._phases[(self._step + phase) % size]
            if free < 0:
                break
            steps += 1
        return min(most, steps)

    def _make(self, leap: _Leap[T], steps: int) -> None:
        """Make so many steps of a leap."""
        if self._fresh:
            first_s = self._at_s + leap.first_ms / 1e3
            for each in self._fresh:
                each.first_s = first_s
                self._firsts.append((first_s, each.item))
            self._fresh.clear()
        took_ms = leap.ms(steps)
        self._work_ms -= took_ms - steps * (self._base_ms - self._share_ms)
        if self._capacity is not None:
            rounds, rest = divmod(steps, self.rules.block_tokens)
            size = self.rules.block_tokens
            self._blocks += rounds * self._decoding
            begin = self._step % size
            self._blocks += sum(self._phases[begin : begin + rest])
            self._blocks += sum(self._phases[: max(0, begin + rest - size)])
        self._step += steps
        self._at_s += took_ms / 1e3
        self._attended_ms += self._growth_ms * steps
        self._end()
        for each, chunk in leap.chunks:
            each.computed += chunk * steps
            if each.computed == each.target:
                self._prefilling.remove(each)
                self._decode(each)
        if not self._sequences:
            self._work_ms = 0.0

    def _end(self) -> None:
        """Let those leave that have all of their tokens."""
        while self._ending and self._ending[0][0] <= self._step:
            end_step, _, each = heappop(self._ending)
            if each.end_step != end_step:
                continue
            self._leave(each)
            del self._sequences[each.item]
            times = each.admitted_s, each.decoding_s, each.first_s, self._at_s
            self._done.append(Served(each.item, *times, each.preemptions))

    def _copy(self) -> "ContinuousBatch[T]":
        """The same state, to run ahead; who was admitted or has ended is left out."""
        new: ContinuousBatch[T] = ContinuousBatch(self.rules)
        clones = {id(each): each.clone() for each in self._sequences.values()}

        def cloned(some: Sequence[_Sequence[T]]) -> list[_Sequence[T]]:
            return [clones[id(each)] for each in some]

        new._sequences = {item: clones[id(each)] for item, each in self._sequences.items()}
        new._waiting, new._running = cloned(self._waiting), cloned(self._running)
        new._prefilling, new._fresh = cloned(self._prefilling), cloned(self._fresh)
        live = [entry for entry in self._ending if entry[2].end_step == entry[0]]
        new._ending = [(end_step, tie, clones[id(each)]) for end_step, tie, each in sorted(live)]
        new._step_ms = {decoder: dict(counts) for decoder, counts in self._step_ms.items()}
        new._phases = list(self._phases)
        for name in _COPIED:
            setattr(new, name, getattr(self, name))
        return new


_COPIED = (
    *("_at_s", "_step", "_ties", "_settled", "_reconsider_s", "_decoding", "_blocks"),
    *("_base_ms", "_attended_ms", "_growth_ms", "_share_ms", "_work_ms"),
)
