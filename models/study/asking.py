"""Asks models questions in many cases. Questions that share a context share its prefill; answers are decoded together.

Nothing here knows of files, other processes or statistics: examples come in, outcomes go out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kvcache.cache import KVCache
from kvcache.modes import MIXED, UNQUANTIZED
from kvcache.plans import Plan, quantized
from kvcache.selection import SELECTIONS, Selection
from models.datasets import Example
from models.hf.attention import Recorder, Scoring, collecting
from models.hf.bodies import CachePayload, QuestionPayload, cache_bytes, write_cache, write_question
from models.hf.cloud import CloudModel
from models.hf.decode import Answer, PlainDecoder, Start, padded
from models.hf.edge import Prefilled
from models.hf.loading import LoadedModel, same_tokenizer
from models.hf.prefill import prefill
from models.hf.prompts import Prompt, prompt_of, reference_tokens, text_of
from models.study.cases import Case, Side
from models.study.rows import Outcome
from models.tasks import Task, reference_of

BATCH_BYTES = {"cpu": 2**29, "cuda": 2**33}  # of caches, and logits of references, that are computed together
LOGIT_BYTES = 12  # as the model makes them, as float32, and their log-softmax


@dataclass(frozen=True, slots=True)
class Item:
    """An example, its place in the study, and the cases that are wanted of it."""

    example: Example
    context: int
    length: int
    cases: tuple[Case, ...]


@dataclass(eq=False, slots=True)
class _Asked:
    """One example in one case, before and after its answer."""

    item: Item
    case: Case
    prompt: Prompt
    start: Start
    reference: tuple[int, ...]
    kept: Tensor | None
    payload_bytes: int
    overlap: float = -1.0
    beyond: float = -1.0
    answer: Answer | None = None
    nll: float = 0.0


@dataclass(eq=False, slots=True)
class Asker:
    """Asks one model, or an edge's and a cloud's.

    Args:
        plan: of the edge's layers, for `mixed_int4`.

    Raises:
        ValueError: models with different tokenizers: positions of one mean nothing to the other.
    """

    edge: LoadedModel
    cloud: LoadedModel | None
    task: Task
    max_new_tokens: int
    plan: Plan | None = None
    _selections: dict[str, Selection] = field(
        default_factory=lambda: {name: make() for name, make in SELECTIONS.items()}
    )

    def __post_init__(self) -> None:
        self._selections.update((name, make()) for name, make in SELECTIONS.items())
        if self.cloud is not None and not same_tokenizer(self.edge, self.cloud):
            raise ValueError(
                f"the tokenizers of {self.edge.spec.name} and {self.cloud.spec.name} differ: positions of one mean "
                "nothing to the other, so nothing can be scouted; study each model by itself"
            )

    @torch.no_grad()
    def ask(self, items: Sequence[Item]) -> list[Outcome]:
        """The outcomes of examples that share a context (or of any others, one context after the other)."""
        asked = [one for group in _by_context(items) for one in self._asked(group)]
        for side in ("edge", "cloud"):
            mine = [one for one in asked if one.case.side == side]
            if mine:
                self._answer(self._model(side), mine)
        return [self._outcome(one) for one in asked]

    def _model(self, side: Side | str) -> LoadedModel:
        model = self.edge if side == "edge" else self.cloud
        assert model is not None
        return model

    def _asked(self, group: Sequence[Item]) -> Iterator[_Asked]:
        prompts = [prompt_of(self.edge, i.example.context, i.example.question, self.task) for i in group]
        sides = sorted({case.side for item in group for case in item.cases})
        found: dict[str, Iterator[Prefilled]] = {}
        for side in {*sides, "edge"}:
            names = {c.selection for i in group for c in i.cases if c.selection and (c.side == side or side == "edge")}
            found[side] = prefilled_together(self._model(side), prompts, [self._selections[n] for n in sorted(names)])
        for item, prompt in zip(group, prompts, strict=True):
            here = {side: next(each) for side, each in found.items()}
            reference = reference_tokens(self.edge, prompt, reference_of(item.example.answers))
            for case in item.cases:
                yield self._start(item, case, prompt, here, reference)

    def _start(
        self, item: Item, case: Case, prompt: Prompt, found: Mapping[str, Prefilled], reference: tuple[int, ...]
    ) -> _Asked:
        kept, overlap, beyond = None, -1.0, -1.0
        if case.selection is not None:
            by = {side: self._kept(one, case) for side, one in found.items() if case.selection in one.scores}
            kept = by["edge" if case.scout or case.side == "edge" else "cloud"]
            if case.scout and 0 < len(kept) < prompt.context:
                overlap, chance = float(torch.isin(kept, by["cloud"]).float().mean()), len(kept) / prompt.context
                beyond = (overlap - chance) / (1 - chance)
        start, sent = self._from(item, case, found[case.side], kept)
        return _Asked(item, case, prompt, start, reference, kept, sent, overlap, beyond)

    def _kept(self, found: Prefilled, case: Case) -> Tensor:
        assert case.selection is not None
        return self._selections[case.selection].select(found.scores[case.selection], case.retention, found.query)

    def _from(self, item: Item, case: Case, found: Prefilled, kept: Tensor | None) -> tuple[Start, int]:
        """Where decoding starts, and the bytes that are sent for it."""
        model, new, one_line = self._model(case.side), self.max_new_tokens, self.task.one_line
        if case.way != "prune" and kept is not None:
            cloud = CloudModel(model, PlainDecoder(model))
            prepare = cloud.prefill_kept if case.way == "prefill_kept" else cloud.prefill_deleted
            return prepare(found.prompt, kept, new, one_line).start, _question_bytes(item, kept, found.context)
        cache = found.handover(kept)
        if case.side == "cloud":
            sent = -1 if kept is not None and not case.scout else _question_bytes(item, kept, found.context)
            return Start(cache, found.last_token, new, one_line), sent
        plan = self.plan if case.quantizer == MIXED else case.quantizer
        if plan is None:
            raise ValueError(f"{MIXED} needs a plan of layers")
        try:
            sent = cache_bytes(cache.geometry, plan, cache.positions, cache.length)
        except ValueError:  # of `delta`, the size depends on the values
            buffers = write_cache(CachePayload(cache, found.last_token), plan, model.fingerprint)
            sent = sum(buffer.nbytes for buffer in buffers)
        exact = plan == UNQUANTIZED and cache.geometry.dtype.itemsize == 2  # on the wire as it is
        received = cache if exact else quantized(cache, plan)
        return Start(received, found.last_token, new, one_line), sent

    def _answer(self, model: LoadedModel, asked: Sequence[_Asked]) -> None:
        decoder = PlainDecoder(model)
        for batch in _batches(asked, BATCH_BYTES.get(model.device.type, 2**28), model.vocabulary):
            starts = [one.start for one in batch]
            for one, answer in zip(batch, decoder.decode(starts), strict=True):
                one.answer = answer
            for one, nll in zip(batch, answer_nlls(model, starts, [one.reference for one in batch]), strict=True):
                one.nll = nll

    def _outcome(self, one: _Asked) -> Outcome:
        assert one.answer is not None
        example, case = one.item.example, one.case
        text = text_of(self._model(case.side), one.answer.tokens, self.task)
        score = self.task.score(text, example.answers)
        kept = one.prompt.context if one.kept is None else len(one.kept)
        return Outcome(
            example=example.name, context=one.item.context, length=one.item.length, case=case.name, side=case.side,
            selection=case.selection or "", retention=case.retention, quantizer=case.quantizer, way=case.way,
            answer=text, references="\n".join(example.answers), f1=score.f1, exact=score.exact,
            nll=one.nll, nll_tokens=len(one.reference),
            answer_tokens=len(one.answer.tokens), stopped=one.answer.stopped,
            context_tokens=one.prompt.context, kept=kept, payload_bytes=one.payload_bytes,
            overlap=one.overlap, beyond_chance=one.beyond, answer_kept=_answer_kept(one),
            kept_positions=[] if one.kept is None else one.kept.tolist(),
        )  # fmt: skip


def prefilled_together(
    model: LoadedModel, prompts: Sequence[Prompt], selections: Sequence[Selection]
) -> Iterator[Prefilled]:
    """Each prompt prefilled and scored as `EdgeModel.prefill` does; what all of them begin with, once.

    Raises:
        ValueError: a prompt that the model doesn't take.
    """
    shared = _shared(prompts) if len(prompts) > 1 else 0
    recorder, cache = Recorder(), None
    if shared:
        with collecting(recorder):
            cache, _ = prefill(model, prompts[0].tokens[:shared])
    layers = model.geometry.layers
    for prompt in prompts:
        scoring = Scoring(selections, prompt.head, prompt.context, prompt.query, layers, recorder.queries)
        with collecting(scoring):
            whole, logits = prefill(model, prompt.tokens) if cache is None else _go_on(model, cache, prompt)
        yield Prefilled(prompt, whole, scoring.scores(), int(logits.argmax()), 0.0, 0.0)


def _shared(prompts: Sequence[Prompt]) -> int:
    """How many tokens all prompts begin with; 0 if that is less than head and context."""
    first, least = prompts[0], min(len(prompt.tokens) for prompt in prompts) - 1
    same = next((i for i in range(least) if any(p.tokens[i] != first.tokens[i] for p in prompts)), least)
    end = first.head + first.context
    return end if same >= end and all((p.head, p.context) == (first.head, first.context) for p in prompts) else 0


def _go_on(model: LoadedModel, cache: KVCache, prompt: Prompt) -> tuple[KVCache, Tensor]:
    past: Any = DynamicCache([(keys[None], values[None]) for keys, values in cache.layers], config=model.model.config)
    rest = prompt.tokens[cache.length :]
    if len(prompt.tokens) > model.max_positions:
        raise ValueError(f"{len(prompt.tokens)} tokens; {model.spec.name} takes 1 to {model.max_positions}")
    ids = torch.tensor([rest], device=model.device)
    positions = torch.arange(cache.length, len(prompt.tokens), device=model.device)[None]
    output = model.model(input_ids=ids, position_ids=positions, past_key_values=past, use_cache=True, logits_to_keep=1)
    return KVCache.whole(tuple((layer.keys[0], layer.values[0]) for layer in past.layers)), output.logits[0, -1]


@torch.no_grad()
def answer_nlls(model: LoadedModel, starts: Sequence[Start], answers: Sequence[Sequence[int]]) -> list[float]:
    """The mean negative log-likelihood of each answer's tokens after its start, in nats a token."""
    device, longest = model.device, max(map(len, answers))
    past, mask = padded(model, [start.cache for start in starts])
    kept = max(start.cache.kept for start in starts)
    fed = torch.zeros((len(starts), longest), dtype=torch.int64)
    wanted = torch.full((len(starts), longest), -100)
    for row, (start, answer) in enumerate(zip(starts, answers, strict=True)):
        fed[row, : len(answer)] = torch.tensor([start.token, *answer[:-1]])
        wanted[row, : len(answer)] = torch.tensor(answer)
    lengths = torch.tensor([start.cache.length for start in starts])
    positions = (lengths[:, None] + torch.arange(longest)).to(device)
    if mask is None:
        mask = torch.ones((len(starts), 1, 1, kept), dtype=torch.bool, device=device)
    causal = torch.ones((longest, longest), dtype=torch.bool, device=device).tril()
    seen = torch.cat((mask.expand(-1, -1, longest, -1), causal.expand(len(starts), 1, -1, -1)), -1)
    logits = model.model(
        input_ids=fed.to(device), position_ids=positions, attention_mask=seen, past_key_values=past, use_cache=True
    ).logits
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), wanted.to(device).flatten(), reduction="none", ignore_index=-100
    ).view(len(starts), longest)
    return [float(loss.sum()) / len(answer) for loss, answer in zip(losses, answers, strict=True)]


def _by_context(items: Sequence[Item]) -> list[list[Item]]:
    places = [(item.length, item.context) for item in items]
    bounds = [0, *(i for i in range(1, len(items)) if places[i] != places[i - 1]), len(items)]
    return [list(items[begin:end]) for begin, end in pairwise(bounds)]


def _batches(asked: Sequence[_Asked], most_bytes: int, vocabulary: int) -> Iterator[list[_Asked]]:
    """Those of similar length together, so that little is padded."""
    batch: list[_Asked] = []
    longest = 0
    for one in sorted(asked, key=lambda one: one.start.cache.kept):
        longest = max(longest, len(one.reference))  # every row's logits are padded to it
        positions = one.start.cache.kept + max(longest, one.start.max_new_tokens)
        each = one.start.cache.geometry.nbytes(positions) + longest * vocabulary * LOGIT_BYTES
        if batch and (len(batch) + 1) * each > most_bytes:
            yield batch
            batch, longest = [], len(one.reference)
        batch.append(one)
    if batch:
        yield batch


def _question_bytes(item: Item, kept: Tensor | None, context: int) -> int:
    """Of a question with positions of a context that the cloud has, or of the prompt as text."""
    example = item.example
    if kept is None:
        return len(write_question(QuestionPayload(example.context, example.question)))
    return len(write_question(QuestionPayload(0, example.question, kept, context)))


def _answer_kept(one: _Asked) -> float:
    """The share of the reference's tokens in the context that are kept, where most are."""
    example = one.item.example
    places = [place for answer in example.answers for place in one.prompt.places_of(answer, example.context)]
    if not places:
        return -1.0
    if one.kept is None:
        return 1.0
    there = set(one.kept.tolist())
    return max(sum(position in there for position in place) / len(place) for place in places)
