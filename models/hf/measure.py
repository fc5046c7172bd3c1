"""Measurement of each operating mode's costs and answer quality on real models, one request at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from kvcache.cache import KVCache
from kvcache.modes import MIXED, UNQUANTIZED, Mode
from kvcache.plans import Plan, probe
from kvcache.selection import SELECTIONS
from kvcache.wire import Limits
from models.datasets import Example
from models.f1 import token_f1
from models.hf.bodies import CacheBody, CachePayload, QuestionPayload, cache_bytes, write_cache, write_question
from models.hf.cloud import CloudModel
from models.hf.decode import Answer
from models.hf.edge import EdgeModel, Prefilled
from models.hf.loading import LoadedModel, same_tokenizer
from models.hf.stopwatch import Stopwatch
from models.hf.words import context_tokens, query_tokens, text_of

MAX_NEW_TOKENS = 16
PLAN_THRESHOLD = 0.01  # nats a token of the answer

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModeResult:
    """One request in one mode.

    Attributes:
        answer, f1: the text, and its token F1 against the example's answers, in [0, 1].
        payload_bytes: the exact size of the body that the edge sends (see `models.hf.bodies`).
        encode_ms: selecting, quantizing and packing the whole body.
        cloud_prefill_ms: prefilling the prompt, or unpacking the cache; 0 for `local`.
        decode_ms: decoding the whole answer, alone in its batch; for `local`, on the edge.
    """

    answer: str
    f1: float
    payload_bytes: int
    encode_ms: float
    cloud_prefill_ms: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class RequestResult:
    """One request in every mode.

    Attributes:
        context: length in tokens.
        kv_bytes: payload of the full cache.
        edge_prefill_ms: tokenizing, prefill, and scoring for all selections of the modes; the same for every mode,
            since an agent prefills before it knows the mode.
    """

    context: int
    kv_bytes: int
    edge_prefill_ms: float
    modes: dict[Mode, ModeResult]


def measure(
    examples: Sequence[Example],
    edge: LoadedModel,
    cloud: LoadedModel,
    modes: Sequence[Mode],
    max_new_tokens: int = MAX_NEW_TOKENS,
    plan: Plan | None = None,
    progress: Progress = lambda line: None,
    results: list[RequestResult] | None = None,
) -> list[RequestResult]:
    """Every example in every mode, each request by itself on the models' device.

    Caches are decoded by the edge's model in the cloud; `prompt` and `scout` are prefilled and decoded by the cloud's.
    The first example is processed once before, as a warm-up.

    Args:
        plan: the edge's plan for `mixed_int4`, from `find_plan`.
        progress: receives a line now and then.
        results: where they go as they come, and stay whatever happens.

    Raises:
        ValueError: before anything is measured: a prompt that a model doesn't take, `mixed_int4` without a
            plan, or `scout` where tokenizers differ.
    """
    if any(mode.needs_context for mode in modes) and not same_tokenizer(edge, cloud):
        raise ValueError(f"mode scout: the tokenizers of {edge.spec.name} and {cloud.spec.name} differ")
    if plan is None and any(mode.quantizer == MIXED for mode in modes):
        raise ValueError(f"{MIXED} needs a plan of layers")
    check_examples(examples, edge, cloud)
    bench = _Bench(edge, cloud, modes, max_new_tokens, plan)
    results = [] if results is None else results
    for number, example in enumerate([*examples[:1], *examples]):
        if number % 50 == 1:
            progress(f"{edge.spec.name}: example {number} of {len(examples)}")
        found = bench.request(example)
        if number:
            results.append(found)
    return results


def check_examples(examples: Sequence[Example], *models: LoadedModel) -> None:
    """Raises ValueError, with the example's number from 1 on, unless each model can take every prompt."""
    for model in models:
        for number, example in enumerate(examples, start=1):
            context, query = context_tokens(model, example.context), query_tokens(model, example.question)
            if not context:
                raise ValueError(f"example {number}: {model.spec.name} makes no token of its context")
            if len(context) + len(query) > model.max_positions:
                raise ValueError(
                    f"example {number}: {len(context) + len(query):,} tokens; {model.spec.name} takes 1 to "
                    f"{model.max_positions:,}"
                )


class _Bench:
    """An edge and a cloud that serve one request after the other."""

    def __init__(
        self,
        edge: LoadedModel,
        cloud: LoadedModel,
        modes: Sequence[Mode],
        max_new_tokens: int,
        plan: Plan | None,
    ) -> None:
        self._edge, self._cloud = EdgeModel(edge), CloudModel(cloud)
        self._edge_in_cloud = CloudModel(edge, self._edge.decoder)
        self._modes, self._new, self._plan = modes, max_new_tokens, plan
        names = dict.fromkeys(mode.selection for mode in modes if mode.selection is not None)
        self._selections = {name: SELECTIONS[name]() for name in names}

    def request(self, example: Example) -> RequestResult:
        loaded = self._edge.loaded
        watch = Stopwatch(loaded.device)
        context, query = context_tokens(loaded, example.context), query_tokens(loaded, example.question)
        found = self._edge.prefill(context, query, list(self._selections.values()))
        watch.lap()
        modes = {mode: self._serve(example, found, mode) for mode in self._modes}
        whole = len(context) + len(query) - 1
        kv_bytes = cache_bytes(loaded.geometry, UNQUANTIZED, torch.arange(whole), whole)
        return RequestResult(len(context), kv_bytes, watch.laps_ms()[0], modes)

    def _serve(self, example: Example, found: Prefilled, mode: Mode) -> ModeResult:
        if mode.is_cache:
            return self._cache(example, found, mode)
        return self._question(example, found, mode) if mode.is_question else self._local(example, found)

    def _cache(self, example: Example, found: Prefilled, mode: Mode) -> ModeResult:
        loaded = self._edge.loaded
        watch = Stopwatch(loaded.device)
        plan = self._plan if mode.quantizer == MIXED else mode.quantizer
        assert plan is not None
        keep = found.positions(self._kept(found, mode))
        buffers = list(write_cache(CachePayload(found.handover(), found.last_token), plan, loaded.fingerprint, keep))
        sent = sum(buffer.nbytes for buffer in buffers)
        watch.lap()
        body = CacheBody({loaded.fingerprint: loaded.geometry}, Limits(), None, sent, loaded.device)
        for buffer in buffers:
            body.feed(buffer)
        received = body.finish()
        start = self._edge_in_cloud.decode_cache(received.cache, received.last_token, self._new).start
        watch.lap()
        [answer], _ = self._edge_in_cloud.answers([start])
        watch.lap()
        return _result(loaded, example, answer, sent, watch)

    def _question(self, example: Example, found: Prefilled, mode: Mode) -> ModeResult:
        """`prompt`, or `scout` with the edge's positions of a context that is in the cloud already."""
        loaded = self._cloud.loaded
        watch = Stopwatch(self._edge.loaded.device)
        kept = self._kept(found, mode)
        if kept is None:
            sent = write_question(QuestionPayload(example.context, example.question))
        else:
            sent = write_question(QuestionPayload(0, example.question, kept, found.context))
        watch.lap()
        context, query = context_tokens(loaded, example.context), query_tokens(loaded, example.question)
        start = self._cloud.prefill_prune([*context, *query], len(query), kept, self._new).start
        watch.lap()
        [answer], _ = self._cloud.answers([start])
        watch.lap()
        return _result(loaded, example, answer, len(sent), watch)

    def _local(self, example: Example, found: Prefilled) -> ModeResult:
        watch = Stopwatch(self._edge.loaded.device)
        watch.lap()
        watch.lap()
        answer = self._edge.answer(found, self._new)
        watch.lap()
        return _result(self._edge.loaded, example, answer, 0, watch)

    def _kept(self, found: Prefilled, mode: Mode) -> Tensor | None:
        if mode.selection is None:
            return None
        scores = found.scores[mode.selection]
        return self._selections[mode.selection].select(scores, mode.retention, found.query)


def _result(loaded: LoadedModel, example: Example, answer: Answer, sent: int, watch: Stopwatch) -> ModeResult:
    """Of an answer by this model; the watch has the laps encode, cloud prefill, decode."""
    text = text_of(loaded, answer.tokens)
    return ModeResult(text, token_f1(text, example.answers), sent, *watch.laps_ms())


@torch.no_grad()
def find_plan(
    edge: LoadedModel,
    examples: Sequence[Example],
    threshold: float = PLAN_THRESHOLD,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Plan:
    """The quantizer of every layer for `mixed_int4`, by `kvcache.plans.probe` over these examples.

    The cost is the negative log-likelihood, in nats a token, of the answers that the model gives from its whole cache.
    It rises long before an answer changes, so few examples suffice, and no reference answers are needed.

    Args:
        examples: disjoint from those that the mode is measured on, where there are enough.
        threshold: the largest accepted increase by one layer.

    Raises:
        ValueError: no examples, or a prompt longer than the model takes.
    """
    if not examples:
        raise ValueError("no examples to find a plan with")
    check_examples(examples, edge)
    model = EdgeModel(edge)
    prompts, expected = [], []
    for example in examples:
        found = model.prefill(context_tokens(edge, example.context), query_tokens(edge, example.question))
        answer = model.answer(found, max_new_tokens).tokens or (found.first_token,)
        prompts.append(found.handover())
        expected.append((found.last_token, *answer))
    # Quantizers treat positions independently, so all caches can be probed as one.
    ends = torch.tensor([cache.length for cache in prompts]).cumsum(0).tolist()
    pairs = zip(*(cache.layers for cache in prompts), strict=True)
    joined = KVCache.whole(tuple((torch.cat([k for k, _ in p], 1), torch.cat([v for _, v in p], 1)) for p in pairs))

    def cost_of(cache: KVCache) -> float:
        costs = []
        for end, prompt, tokens in zip(ends, prompts, expected, strict=True):
            begin = end - prompt.length
            layers = tuple((keys[:, begin:end], values[:, begin:end]) for keys, values in cache.layers)
            costs.append(_answer_nll(edge, KVCache.whole(layers), tokens))
        return sum(costs) / len(costs)

    return probe(joined, cost_of, threshold)


def _answer_nll(loaded: LoadedModel, cache: KVCache, tokens: Sequence[int]) -> float:
    """Mean negative log-likelihood, in nats, of all tokens but the first, fed after a whole cache."""
    fed = torch.tensor([tokens], device=loaded.device)
    past = DynamicCache([(keys[None], values[None]) for keys, values in cache.layers], config=loaded.model.config)
    positions = torch.arange(cache.length, cache.length + len(tokens) - 1, device=loaded.device)[None]
    logits = loaded.model(input_ids=fed[:, :-1], position_ids=positions, past_key_values=past, use_cache=True).logits
    return float(torch.nn.functional.cross_entropy(logits[0].float(), fed[0, 1:]))
