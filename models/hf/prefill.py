"""Prefill: a forward pass from tokens to a cache."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kvcache.cache import KVCache
from models.hf.loading import LoadedModel


@torch.no_grad()
def prefill(
    loaded: LoadedModel, tokens: Sequence[int], positions: Tensor | None = None, length: int | None = None
) -> tuple[KVCache, Tensor]:
    """One forward pass over one sequence.

    Args:
        tokens: the whole sequence, or its tokens at `positions`.
        positions: int64, ascending, of `tokens` in a sequence of `length`; each attends to the earlier ones present,
            at their true distances.

    Returns:
        The cache, and the logits [vocabulary] after the last token.

    Raises:
        ValueError: no tokens, more than the model has positions, or unknown ones.
    """
    if positions is None or length is None:
        positions, length = torch.arange(len(tokens)), len(tokens)
    if not tokens or length > loaded.max_positions:
        raise ValueError(f"{length} tokens; {loaded.spec.name} takes 1 to {loaded.max_positions}")
    loaded.check_tokens(list(tokens))
    # Without an explicit cache, transformers would interpret gaps between positions as ends of packed sequences.
    cache: Any = DynamicCache(config=loaded.model.config)
    output = loaded.model(
        input_ids=torch.tensor([tokens], device=loaded.device),
        position_ids=positions[None].to(loaded.device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    layers = tuple((layer.keys[0], layer.values[0]) for layer in cache.layers)
    return KVCache(layers, positions, length), output.logits[0, -1]
