"""Greedy decoding of several requests at once, each from a whole or pruned cache.

Decoding starts from a `Start`: a cache and the one token that follows it. The model is fed that token, at the position
after the cache's original length, so a receiver needs only a cache and a token, but no logits. The last token of the
prompt is therefore never part of a cache that is sent.
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
    """The state from which decoding starts.

    Attributes:
        cache: of everything before `token`, whole or pruned; its `length` is the position of `token`.
        token: the first token to feed; not part of the answer.
        max_new_tokens: the limit on the answer's length, at least 1.
        one_line: whether a line's end after the first token ends the answer.
        begun: whether `token` is the answer's first.
    """

    cache: KVCache
    token: int
    max_new_tokens: int = 64
    one_line: bool = False
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Generated tokens, without the stop token; `stopped` tells whether there was one."""

    tokens: tuple[int, ...]
    stopped: bool


class Decoder(Protocol):
    """Decodes with one model.

    Attributes:
        name: the decoding method.
        reason: why no faster method is used; empty if there is none.
    """

    name: str
    reason: str

    def decode(self, starts: Sequence[Start]) -> list[Answer]:
        """The greedy answers, each as if decoded alone (up to rounding).

        Raises:
            ValueError: this model can't decode from one of the starts.
        """
        ...


class Answers:
    """Collects generated tokens until every request has reached its stop token or its `max_new_tokens`."""

    def __init__(self, starts: Sequence[Start], loaded: LoadedModel) -> None:
        self._stop_tokens = loaded.stop_tokens
        either = loaded.stop_tokens | loaded.line_ends
        self._later = [either if start.one_line else loaded.stop_tokens for start in starts]
        self._begun = [start.begun for start in starts]
        self._left = [start.max_new_tokens for start in starts]
        self._tokens: list[list[int]] = [[] for _ in starts]
        self._stopped = [False] * len(starts)

    def take(self, tokens: Sequence[int], rows: Sequence[int] | None = None) -> bool:
        """Add the next token of each request (or of these); returns whether any request is unfinished."""
        for row, token in zip(range(len(self._left)) if rows is None else rows, tokens, strict=False):
            ends = self._later[row] if self._begun[row] else self._stop_tokens
            if self._left[row] and token in ends:
                self._stopped[row], self._left[row] = True, 0
            elif self._left[row]:
                self._tokens[row].append(token)
                self._left[row] -= 1
                self._begun[row] = True
        return any(self._left)

    def unfinished(self) -> list[int]:
        """The requests that go on."""
        return [row for row, left in enumerate(self._left) if left]

    def answers(self) -> list[Answer]:
        return [Answer(tuple(tokens), stopped) for tokens, stopped in zip(self._tokens, self._stopped, strict=True)]


def check_start(loaded: LoadedModel, start: Start) -> None:
    """Raise ValueError if this model can't decode from `start`."""
    if start.cache.geometry != loaded.geometry:
        raise ValueError(f"the cache has {start.cache.geometry}, but {loaded.spec.name} has {loaded.geometry}")
    if start.max_new_tokens < 1:
        raise ValueError("max_new_tokens must be at least 1")
    if start.cache.length + start.max_new_tokens > loaded.max_positions:
        needed = start.cache.length + start.max_new_tokens
        raise ValueError(f"{needed} positions needed, but {loaded.spec.name} has {loaded.max_positions}")
    loaded.check_tokens([start.token])


class PlainDecoder:
    """Decoding with transformers' own model and growing cache, one call per token: works everywhere, slow on GPUs."""

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
        cache, mask = padded(self._loaded, [start.cache for start in starts])
        token = torch.tensor([[start.token] for start in starts], device=device)
        position = torch.tensor([[start.cache.length] for start in starts], device=device)
        answers = Answers(starts, self._loaded)
        rows, more = list(range(len(starts))), True
        while more:
            if mask is not None:
                mask = torch.nn.functional.pad(mask, (0, 1), value=True)
            logits = self._loaded.model(
                input_ids=token, position_ids=position, attention_mask=mask, past_key_values=cache, use_cache=True
            ).logits
            token, position = logits[:, -1:].argmax(-1), position + 1
            more = answers.take(token[:, 0].tolist(), rows)
            going = answers.unfinished()
            if 2 * len(going) <= len(rows) and more:  # the others leave the batch
                places = torch.tensor([rows.index(row) for row in going], device=device)
                cache.batch_select_indices(places)
                token, position, rows = token[places], position[places], going
                mask = None if mask is None else mask[places]
        return answers.answers()


def padded(loaded: LoadedModel, caches: Sequence[KVCache]) -> tuple[DynamicCache, Tensor | None]:
    """One batched cache, shorter ones padded at the end, and its mask [batch, 1, 1, kept]; None if unpadded."""
    device, config = loaded.device, loaded.model.config
    kept = torch.tensor([cache.kept for cache in caches])
    if len(set(kept.tolist())) <= 1:
        mask = None
    else:
        mask = (torch.arange(int(kept.max())) < kept[:, None])[:, None, None].to(device)
    padded = []
    for layer in range(loaded.geometry.layers):
        pair = []
        for side in (0, 1):
            shape = loaded.geometry.shape(int(kept.max()))
            joined = torch.zeros((len(caches), *shape), dtype=loaded.geometry.dtype, device=device)
            for row, cache in enumerate(caches):
                joined[row, :, : cache.kept] = cache.layers[layer][side]
            pair.append(joined)
        padded.append(tuple(pair))
    return DynamicCache(padded, config=config), mask
