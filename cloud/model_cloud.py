"""Real models on a cloud worker: it decodes from received caches and answers questions, with several models."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from allocator.online.interfaces import CloudJob
from cloud.frames import Header
from cloud.runtime import BadBody, Body, Discarded, ProfileCloud, UnknownModel, Unservable
from kvcache.errors import WireError
from kvcache.modes import QUANTIZER_NAMES, Mode
from kvcache.wire import Limits
from models.hf.bodies import CacheBody, CachePayload, QuestionBody, QuestionPayload, write_cache
from models.hf.cloud import CloudModel, CloudModels
from models.hf.decode import Start
from models.hf.pair import examples_of, plan_for, specs_of
from models.hf.prompts import Prompt, prompt_of, text_of
from models.profiles import ModelProfile
from models.settings import ModelSettings

R = TypeVar("R")


class ModelCloud:
    """Serves requests of real models in a thread of its own, and requests of other models from their profiles.

    Requests are scheduled by the times of their profiles, as the allocator expects. See `cloud.runtime.CloudRuntime`.

    Args:
        profiles: of the run's models; settings: of those that are real, by index.
        base_dir: relative paths start here.

    Raises:
        ModelError, DatasetError: a model or its examples can't be loaded.
    """

    def __init__(
        self, profiles: Sequence[ModelProfile], settings: Mapping[int, ModelSettings], base_dir: Path, batch: int = 1
    ) -> None:
        self._profiles = ProfileCloud(profiles)
        specs = {model: specs_of(real, base_dir) for model, real in settings.items()}
        models = CloudModels(spec for pair in specs.values() for spec in pair)
        self._served = {
            model: _Served(real, profiles[model], models[specs[model][0]], models[specs[model][1]], base_dir)
            for model, real in settings.items()
        }
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cloud")
        for served in self._served.values():
            served.warm_up(batch)

    def check(self, header: Header) -> None:
        self._profiles.check(header)
        served = self._served.get(header.model)
        if served is not None and not served.takes(header):
            raise UnknownModel(f"model {header.model}, mode {header.mode}: no body comes in it that a model can read")

    def job_of(self, header: Header) -> CloudJob:
        job, served = self._profiles.job_of(header), self._served.get(header.model)
        return job if served is None else replace(job, decoder=served.decoder(header).loaded.fingerprint)

    def receive(self, header: Header) -> Body:
        served = self._served.get(header.model)
        return Discarded() if served is None else _Checked(served.body(header))

    async def prefill(self, header: Header, content: Any) -> Any:
        served = self._served.get(header.model)
        if served is None:
            return await self._profiles.prefill(header, content)
        return await self._in_thread(lambda: served.start(content))

    async def decode(self, batch: Sequence[tuple[Header, Any]]) -> list[str]:
        served = self._served.get(batch[0][0].model)
        if served is None:
            return await self._profiles.decode(batch)
        model, task = served.decoder(batch[0][0]), served.task
        answers, _ = await self._in_thread(lambda: model.answers([start for _, start in batch]))
        return [text_of(model.loaded, answer.tokens, task) for answer in answers]

    async def _in_thread(self, work: Callable[[], R]) -> R:
        """Run `work` in the model's thread. Raises Unservable for errors that a request can cause."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (ValueError, RuntimeError) as error:  # the input doesn't fit the model, or memory is full
            raise Unservable(" ".join(str(error).split())[:200]) from None


@dataclass(slots=True)
class _Checked:
    """Raises a body's errors as BadBody, which the reception handles."""

    body: CacheBody | QuestionBody

    def feed(self, piece: memoryview) -> None:
        try:
            self.body.feed(piece)
        except WireError as error:
            raise BadBody(error.code, str(error)) from None
        except torch.OutOfMemoryError:
            raise BadBody("unservable", "the worker's GPU has no room for another cache") from None

    def finish(self) -> CachePayload | QuestionPayload:
        try:
            return self.body.finish()
        except WireError as error:
            raise BadBody(error.code, str(error)) from None


class _Served:
    """One of the run's model pairs: the edge's model, which wrote the received caches, and the cloud's own."""

    def __init__(
        self, settings: ModelSettings, profile: ModelProfile, edge: CloudModel, cloud: CloudModel, base_dir: Path
    ) -> None:
        self._profile = profile
        self._plans = {m: plan_for(m, profile) for m in profile.modes if m.is_cache and m.quantizer in QUANTIZER_NAMES}
        self._settings, self._edge, self._cloud = settings, edge, cloud
        self.task = settings.asked
        self._examples = examples_of(settings, base_dir)

    def takes(self, header: Header) -> bool:
        """Whether bodies of this mode can be read: not of `local`, nor of a name that only the profile knows."""
        mode = self._mode(header)
        return mode.is_question or mode in self._plans

    def decoder(self, header: Header) -> CloudModel:
        """The model that answers requests of this mode."""
        return self._edge if self._mode(header).is_cache else self._cloud

    def body(self, header: Header) -> CacheBody | QuestionBody:
        mode, edge = self._mode(header), self._edge.loaded
        if not mode.is_cache:
            return QuestionBody(self._cloud.loaded.max_positions)
        limits = Limits(edge.max_positions, edge.geometry.nbytes(edge.max_positions))
        accepts = {edge.fingerprint: edge.geometry}
        return CacheBody(accepts, limits, self._plans[mode], header.body_bytes, edge.device)

    def start(self, content: CachePayload | QuestionPayload) -> Start:
        """Raises ValueError for what the model can't take."""
        most, one_line = self._settings.answer_tokens, self.task.one_line
        if isinstance(content, CachePayload):
            return self._edge.decode_cache(content.cache, content.last_token, most, one_line).start
        context = content.context
        if isinstance(context, int):
            if context >= len(self._examples):
                raise ValueError(f"context {context}, where {len(self._examples)} are here")
            context = self._examples[context].context
        cloud = self._cloud
        prompt = prompt_of(cloud.loaded, context, content.question, self.task)
        if content.positions is not None and content.context_tokens != prompt.context:
            raise ValueError(f"positions of {content.context_tokens} tokens, where the context has {prompt.context}")
        if content.positions is not None and self._settings.scout_prefill == "kept":
            return cloud.prefill_kept(prompt, content.positions, most, one_line).start
        return cloud.prefill_prune(prompt, content.positions, most, one_line).start

    def _mode(self, header: Header) -> Mode:
        return self._profile.mode_at(header.mode)

    def warm_up(self, batch: int) -> None:
        """Run each model once at each batch size, because first runs are slow."""
        example = max(self._examples, key=lambda example: len(example.context))
        for model in {self._edge, self._cloud}:
            prompt: Prompt = prompt_of(model.loaded, example.context, example.question, self.task)
            start = model.prefill_prune(prompt, None, self._settings.answer_tokens).start
            for size in range(1, batch + 1):
                model.answers([start] * size)
            if model is self._edge and model.loaded.device.type == "cuda":
                self._receive_once(start)

    def _receive_once(self, start: Start) -> None:
        """Unpack a cache of every plan, because kernels are compiled for the first."""
        edge = self._edge.loaded
        for plan in dict.fromkeys(self._plans.values()):
            body = CacheBody({edge.fingerprint: edge.geometry}, Limits(), None, 0, edge.device)
            for buffer in write_cache(CachePayload(start.cache, start.token), plan, edge.fingerprint):
                body.feed(buffer)
            body.finish()
