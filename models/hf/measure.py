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
from models.hf.architecture import ModelError
from models.hf.bodies import CacheBody, CachePayload, QuestionPayload, cache_bytes, write_cache, write_question
from models.hf.cloud import CloudModel
from models.hf.decode import Answer
from models.hf.edge import EdgeModel, Prefilled
from models.hf.loading import LoadedModel, same_tokenizer
from models.hf.prompts import Prompt, prompt_of, reference_tokens, text_of
from models.hf.stopwatch import Stopwatch
from models.tasks import QA, Task, reference_of

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
    max_new_tokens: int | None = None,
    plan: Plan | None = None,
    progress: Progress = lambda line: None,
    results: list[RequestResult] | None = None,
    task: Task = QA,
) -> list[RequestResult]:
    """Every example in every mode, each request by itself on the models' device.

    Caches are decoded by the edge's model in the cloud; `prompt` and `scout` are prefilled and decoded by the cloud's.
    The first example is processed once before, as a warm-up. Examples that a model can't take are left out, and named
    by `progress`.

    Args:
        max_new_tokens: of an answer; None: the task's.
        plan: the edge's plan for `mixed_int4`, from `find_plan`.
        progress: receives a line now and then.
        results: where they go as they come, and stay whatever happens.

    Raises:
        ValueError: before anything is measured: no example that both models take, `mixed_int4` without a
            plan, or `scout` where tokenizers differ.
    """
    if any(mode.needs_context for mode in modes) and not same_tokenizer(edge, cloud):
        raise ValueError(f"mode scout: the tokenizers of {edge.spec.name} and {cloud.spec.name} differ")
    if plan is None and any(mode.quantizer == MIXED for mode in modes):
        raise ValueError(f"{MIXED} needs a plan of layers")
    new = max_new_tokens or task.answer_tokens
    examples = fitting(examples, task, new, edge, cloud, progress=progress)
    bench = _Bench(edge, cloud, modes, new, plan, task)
    results = [] if results is None else results
    for number, example in enumerate([*examples[:1], *examples]):
        if number % 50 == 1 and number:
            progress(f"{edge.spec.name}: example {number} of {len(examples)}")
        found = bench.request(example)
        if number:
            results.append(found)
    return results


def fitting(
    examples: Sequence[Example],
    task: Task,
    max_new_tokens: int,
    *models: LoadedModel,
    progress: Progress = lambda line: None,
    references: bool = False,
) -> list[Example]:
    """The examples whose prompt and answer each model can take; the others are named, with the reason.

    Args:
        references: whether their reference answers are fed to the models, too.

    Raises:
        ValueError: none is left; with the first one's reason.
    """
    kept, first = [], "no examples"
    for number, example in enumerate(examples, start=1):
        reasons = (_unfit(example, task, max_new_tokens, model, references) for model in models)
        if reason := next(filter(None, reasons), ""):
            named = f"example {number}{f' ({example.name})' if example.name else ''}: {reason}"
            first = named if first == "no examples" else first
            progress(f"left out: {named}")
        else:
            kept.append(example)
    if not kept:
        raise ValueError(first)
    return kept


def _unfit(example: Example, task: Task, max_new_tokens: int, model: LoadedModel, references: bool) -> str:
    """Why a model can't take an example; empty if it can."""
    try:
        prompt = prompt_of(model, example.context, example.question, task)
        reference = reference_tokens(model, prompt, reference_of(example.answers)) if references else ()
    except ModelError:
        raise
    except ValueError as error:  # tokens that a model with another tokenizer's vocabulary doesn't know
        return str(error)
    if not prompt.context:
        return f"{model.spec.name} makes no token of its context"
    needed, most = len(prompt.tokens) + max(max_new_tokens, len(reference)), model.max_positions
    if needed > most:
        return f"{needed:,} tokens with its answer; {model.spec.name} takes 1 to {most:,}"
    return ""


class _Bench:
    """An edge and a cloud that serve one request after the other."""

    def __init__(
        self,
        edge: LoadedModel,
        cloud: LoadedModel,
        modes: Sequence[Mode],
        max_new_tokens: int,
        plan: Plan | None,
        task: Task,
    ) -> None:
        self._edge, self._cloud = EdgeModel(edge), CloudModel(cloud)
        self._edge_in_cloud = CloudModel(edge, self._edge.decoder)
        self._modes, self._new, self._plan, self._task = modes, max_new_tokens, plan, task
        names = dict.fromkeys(mode.selection for mode in modes if mode.selection is not None)
        self._selections = {name: SELECTIONS[name]() for name in names}

    def request(self, example: Example) -> RequestResult:
        loaded = self._edge.loaded
        watch = Stopwatch(loaded.device)
        prompt = self._prompt(loaded, example)
        found = self._edge.prefill(prompt, list(self._selections.values()))
        watch.lap()
        modes = {mode: self._serve(example, found, mode) for mode in self._modes}
        whole = prompt.positions()
        kv_bytes = cache_bytes(loaded.geometry, UNQUANTIZED, whole, len(whole))
        return RequestResult(prompt.context, kv_bytes, watch.laps_ms()[0], modes)

    def _prompt(self, loaded: LoadedModel, example: Example) -> Prompt:
        return prompt_of(loaded, example.context, example.question, self._task)

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
        one_line = self._task.one_line
        start = self._edge_in_cloud.decode_cache(received.cache, received.last_token, self._new, one_line).start
        watch.lap()
        [answer], _ = self._edge_in_cloud.answers([start])
        watch.lap()
        return self._result(loaded, example, answer, sent, watch)

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
        start = self._cloud.prefill_prune(self._prompt(loaded, example), kept, self._new, self._task.one_line).start
        watch.lap()
        [answer], _ = self._cloud.answers([start])
        watch.lap()
        return self._result(loaded, example, answer, len(sent), watch)

    def _local(self, example: Example, found: Prefilled) -> ModeResult:
        watch = Stopwatch(self._edge.loaded.device)
        watch.lap()
        watch.lap()
        answer = self._edge.answer(found, self._new, self._task.one_line)
        watch.lap()
        return self._result(self._edge.loaded, example, answer, 0, watch)

    def _result(self, loaded: LoadedModel, example: Example, answer: Answer, sent: int, watch: Stopwatch) -> ModeResult:
        """Of an answer by this model; the watch has the laps encode, cloud prefill, decode."""
        text = text_of(loaded, answer.tokens, self._task)
        return ModeResult(text, self._task.score(text, example.answers).f1, sent, *watch.laps_ms())

    def _kept(self, found: Prefilled, mode: Mode) -> Tensor | None:
        if mode.selection is None:
            return None
        scores = found.scores[mode.selection]
        return self._selections[mode.selection].select(scores, mode.retention, found.query)


@torch.no_grad()
def find_plan(
    edge: LoadedModel,
    examples: Sequence[Example],
    threshold: float = PLAN_THRESHOLD,
    max_new_tokens: int | None = None,
    task: Task = QA,
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
    new = max_new_tokens or task.answer_tokens
    model = EdgeModel(edge)
    prompts, expected = [], []
    for example in fitting(examples, task, new, edge):
        found = model.prefill(prompt_of(edge, example.context, example.question, task))
        answer = model.answer(found, new, task.one_line).tokens or (found.first_token,)
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
