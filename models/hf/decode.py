"""Greedy decoding from a cache, whole or pruned, of several requests at once.

What decoding starts from is a `Start`: a cache and the one token that comes after it. The token is *fed*, at the
position that follows the cache's original length, so whoever holds only a cache and a token needs no logits from
anywhere. The last token of the prompt is therefore never part of a cache that is sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from kvcache.cache import KVCache
from models.hf.loading import LoadedModel


@dataclass(frozen=True, eq=False, slots=True)
class Start:
    """Where decoding goes on.

    Attributes:
        cache: of everything before `token`, whole or pruned; its `length` is the position of `token`.
        token: fed first; not part of the answer.
        max_new_tokens: of the answer, at least 1.
    """

    cache: KVCache
    token: int
    max_new_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """Generated tokens, without the stop token, and whether there was one."""

    tokens: tuple[int, ...]
    stopped: bool


class Decoder(Protocol):
    """Decodes with one model.

    Attributes:
        name: of the way it decodes.
        reason: why it isn't a faster way; empty if there is none.
    """

    name: str
    reason: str

    def decode(self, starts: Sequence[Start]) -> list[Answer]:
        """The greedy answers, each as if decoded alone (up to rounding).

        Raises:
            ValueError: a start that this model can't go on from.
        """
        ...


class Answers:
    """Collects generated tokens until every request has its stop token or its number of them."""

    def __init__(self, starts: Sequence[Start], stop_tokens: frozenset[int]) -> None:
        self._stop_tokens = stop_tokens
        self._left = [start.max_new_tokens for start in starts]
        self._tokens: list[list[int]] = [[] for _ in starts]
        self._stopped = [False] * len(starts)

    def take(self, tokens: Sequence[int]) -> bool:
        """The next token of each; true as long as anyone wants more."""
        for row, token in enumerate(tokens[: len(self._left)]):
            if self._left[row] and token in self._stop_tokens:
                self._stopped[row], self._left[row] = True, 0
            elif self._left[row]:
                self._tokens[row].append(token)
                self._left[row] -= 1
        return any(self._left)

    def answers(self) -> list[Answer]:
        return [Answer(tuple(tokens), stopped) for tokens, stopped in zip(self._tokens, self._stopped, strict=True)]


def check_start(loaded: LoadedModel, start: Start) -> None:
    """Raises ValueError unless this model can go on from there."""
    if start.cache.geometry != loaded.geometry:
        raise ValueError(f"a cache of {start.cache.geometry} for {loaded.spec.name}, whose are {loaded.geometry}")
    if start.max_new_tokens < 1:
        raise ValueError("an answer of less than one token")
    if start.cache.length + start.max_new_tokens > loaded.max_positions:
        needed = start.cache.length + start.max_new_tokens
        raise ValueError(f"{needed} positions, but {loaded.spec.name} has {loaded.max_positions}")
    loaded.check_tokens([start.token])


class PlainDecoder:
    """Transformers' own model and growing cache, a call a token: right everywhere, and slow on GPUs."""

    name = "plain"

    def __init__(self, loaded: LoadedModel, reason: str = "") -> None:
        self._loaded, self.reason = loaded, reason

    @torch.no_grad()
    def decode(self, starts: Sequence[Start]) -> list[Answer]:
        if not starts:
            return []
        for start in starts:
            check_start(self._loaded, start)
        device = self._loaded.device
        cache, mask = self._padded([start.cache for start in starts])
        token = torch.tensor([[start.token] for start in starts], device=device)
        position = torch.tensor([[start.cache.length] for start in starts], device=device)
        answers = Answers(starts, self._loaded.stop_tokens)
        more = True
        while more:
            if mask is not None:
                mask = torch.nn.functional.pad(mask, (0, 1), value=True)
            logits = self._loaded.model(
                input_ids=token, position_ids=position, attention_mask=mask, past_key_values=cache, use_cache=True
            ).logits
            token, position = logits[:, -1:].argmax(-1), position + 1
            more = answers.take(token[:, 0].tolist())
        return answers.answers()

    def _padded(self, caches: Sequence[KVCache]) -> tuple[DynamicCache, Tensor | None]:
        """One cache, padded behind the shorter ones, and its mask [batch, 1, 1, kept]; None if there is no padding."""
        device, config = self._loaded.device, self._loaded.model.config
        kept = torch.tensor([cache.kept for cache in caches])
        if len(set(kept.tolist())) <= 1:
            mask = None
        else:
            mask = (torch.arange(int(kept.max())) < kept[:, None])[:, None, None].to(device)
        padded = []
        for layer in range(self._loaded.geometry.layers):
            pair = []
            for side in (0, 1):
                shape = self._loaded.geometry.shape(int(kept.max()))
                joined = torch.zeros((len(caches), *shape), dtype=self._loaded.geometry.dtype, device=device)
                for row, cache in enumerate(caches):
                    joined[row, :, : cache.kept] = cache.layers[layer][side]
                pair.append(joined)
            padded.append(tuple(pair))
        return DynamicCache(padded, config=config), mask


def make_decoder(loaded: LoadedModel) -> Decoder:
    """The fastest decoder that this model and device allow; what it isn't, it says in `reason`."""
    if loaded.device.type != "cuda":
        return PlainDecoder(loaded, f"captured decoding needs a GPU, the model is on {loaded.device.type}")
    from models.hf.captured import CapturedDecoder  # its kernels need Triton, which comes with torch for CUDA only

    reason = CapturedDecoder.unsuited(loaded)
    return PlainDecoder(loaded, reason) if reason else CapturedDecoder(loaded)
