"""A real model on an edge agent: prefill and scores, the cache as each mode wants it, answers of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

from torch import Tensor

from agents.offer import Context
from allocator.problem import ModeOption
from cloud.frames import frame_bytes
from kvcache.modes import Mode
from kvcache.selection import SELECTIONS
from models.datasets import Example
from models.hf.bodies import CachePayload, QuestionPayload, cache_bytes, write_cache, write_question
from models.hf.edge import EdgeModel, Prefilled
from models.hf.loading import ModelSpec, load_model
from models.hf.pair import examples_of, plan_for, specs_of
from models.hf.prompts import prompt_of, text_of
from models.lengths import Lengths
from models.profiles import ModelProfile
from models.settings import ModelSettings
from netem.wire import wire_bytes

PERCENT = 100.0  # qualities are token F1 in percent, as `scout calibrate` writes them
LAYER_BUFFERS = 3  # of `kvcache.wire.encode`


class BytesPayload:
    """A small payload, ready. See `agents.edge.Payload`."""

    def __init__(self, body: bytes) -> None:
        self.size = len(body)
        self._body = body

    async def pieces(self) -> AsyncIterator[memoryview]:
        yield memoryview(self._body)


class StreamedPayload:
    """A cache that is encoded layer by layer, each while the one before is being sent. See `agents.edge.Payload`."""

    def __init__(self, size: int, buffers: Iterator[memoryview], thread: ThreadPoolExecutor) -> None:
        self.size = size
        self._buffers = buffers
        self._thread = thread
        self._next: asyncio.Future[list[memoryview]] | None = None

    async def begin(self) -> None:
        """Encode what goes first."""
        self._next = asyncio.ensure_future(self._ahead())
        await asyncio.wait([self._next])

    async def pieces(self) -> AsyncIterator[memoryview]:
        while self._next is not None:
            layer = await self._next
            self._next = asyncio.ensure_future(self._ahead()) if layer else None
            for buffer in layer:
                yield buffer

    async def _ahead(self) -> list[memoryview]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._take)

    def _take(self) -> list[memoryview]:
        """The next few buffers; none at the end."""
        return [buffer for _, buffer in zip(range(LAYER_BUFFERS), self._buffers, strict=False)]


class ModelEdge:
    """One agent's model, in a thread of its own so that the agent goes on meanwhile. See `agents.edge.EdgeRuntime`.

    Args:
        modes: that the agent may be assigned.
        context: whether the cloud has the contexts that `scout` needs.
        base_dir: where relative paths start.

    Raises:
        ModelError, DatasetError: the model or its examples can't be had.
    """

    def __init__(
        self, settings: ModelSettings, profile: ModelProfile, modes: Sequence[Mode], context: Context, base_dir: Path
    ) -> None:
        spec, _ = specs_of(settings, base_dir)
        self.model: EdgeModel = _loaded(spec)
        self.examples = examples_of(settings, base_dir)
        self.profile = profile
        self.task, self.max_new_tokens = settings.asked, settings.answer_tokens
        self.meaningful = settings.weights == "pretrained"
        self.resident = context == "resident"
        self.modes = modes
        self.plans = {mode: plan_for(mode, profile) for mode in modes if mode.is_cache}
        names = {mode.selection for mode in modes if mode.selection is not None}
        self._selections = {name: SELECTIONS[name]() for name in sorted(names)}
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="edge")
        # The first of everything takes longer, and is nobody's request.
        first = self._prefill(max(range(len(self.examples)), key=lambda number: len(self.examples[number].context)))
        if any(mode.is_local for mode in modes):
            first.answer()
        if self.model.loaded.device.type == "cuda":
            for mode in self.plans:
                for _ in first.buffers(mode):
                    pass

    async def prefill(self, request_id: int, lengths: Lengths | None = None) -> "ModelWork":
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._prefill, request_id)

    def _prefill(self, request_id: int) -> "ModelWork":
        number = request_id % len(self.examples)
        example, loaded = self.examples[number], self.model.loaded
        prompt = prompt_of(loaded, example.context, example.question, self.task)
        prefilled = self.model.prefill(prompt, list(self._selections.values()))
        kept: dict[Mode, Tensor] = {}
        for mode in self.modes:
            if mode.selection is not None:
                scores = prefilled.scores[mode.selection]
                kept[mode] = self._selections[mode.selection].select(scores, mode.retention, prefilled.query).cpu()
        return ModelWork(self, number, example, prefilled, kept)


class ModelWork:
    """One prefilled request. See `agents.edge.Work`.

    Args:
        number: of the example, by which a resident context goes.
        kept: positions of the context that each mode with a selection keeps.
    """

    def __init__(
        self, edge: ModelEdge, number: int, example: Example, prefilled: Prefilled, kept: Mapping[Mode, Tensor]
    ) -> None:
        self._edge, self._number, self._example = edge, number, example
        self._prefilled, self._kept = prefilled, kept
        self._questions = {mode: write_question(self._question(mode)) for mode in edge.modes if mode.is_question}
        self.sizes = {mode: len(body) for mode, body in self._questions.items()}
        self.sizes |= {mode: self._cache_bytes(mode) for mode in edge.plans}

    def offer(self, options: tuple[ModeOption, ...]) -> tuple[ModeOption, ...]:
        """Bytes are exact; the cloud's prefill is the profile's, in proportion to the context's length."""
        profile = self._edge.profile
        longer = self._prefilled.context / profile.tokens - 1 if profile.tokens else 0.0
        return tuple(
            replace(
                option,
                wire_bytes=wire_bytes(frame_bytes(self.sizes[option.mode])),
                cloud_ms=option.cloud_ms + longer * profile.modes[option.mode].cloud_prefill_ms,
            )
            if option.mode in self.sizes
            else option
            for option in options
        )

    async def encode(self, mode: Mode, edge_ms: float) -> BytesPayload | StreamedPayload:
        if mode in self._questions:
            return BytesPayload(self._questions[mode])
        payload = StreamedPayload(self.sizes[mode], self.buffers(mode), self._edge.thread)
        await payload.begin()
        return payload

    def buffers(self, mode: Mode) -> Iterator[memoryview]:
        """The body of a cache mode; what it keeps is gathered as it is packed."""
        edge, prefilled = self._edge, self._prefilled
        handover = CachePayload(prefilled.handover(), prefilled.last_token)
        keep = prefilled.positions(self._kept.get(mode))
        return write_cache(handover, edge.plans[mode], edge.model.loaded.fingerprint, keep)

    async def decode(self, edge_ms: float) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._edge.thread, self.answer)

    def answer(self) -> str:
        """The edge's own answer."""
        edge = self._edge
        answer = edge.model.answer(self._prefilled, edge.max_new_tokens, edge.task.one_line)
        return text_of(edge.model.loaded, answer.tokens, edge.task)

    def quality(self, answer: str) -> float | None:
        return PERCENT * self._edge.task.score(answer, self._example.answers).f1 if self._edge.meaningful else None

    def _question(self, mode: Mode) -> QuestionPayload:
        context = self._number if mode.needs_context and self._edge.resident else self._example.context
        if not mode.needs_context:
            return QuestionPayload(context, self._example.question)
        return QuestionPayload(context, self._example.question, self._kept[mode], self._prefilled.context)

    def _cache_bytes(self, mode: Mode) -> int:
        p = self._prefilled
        positions = p.prompt.positions(self._kept.get(mode))
        return cache_bytes(p.cache.geometry, self._edge.plans[mode], positions, len(p.prompt.tokens) - 1)


@cache
def _loaded(spec: ModelSpec) -> EdgeModel:
    """Agents of one process share a model."""
    return EdgeModel(load_model(spec))
