"""Rows of attention matrices, computed separately: fused kernels return none, and whole matrices don't fit."""

from collections.abc import Iterator

import torch
from torch import Tensor


def tail_probabilities(query: Tensor, keys: Tensor, scale: float, first_position: int) -> Tensor:
    """Causal softmax(query keys^T * scale) of some rows, as in eager attention.

    Args:
        query: [heads, m, head_dim], rotated, of the positions `first_position`, `first_position + 1`, ...
        keys: [kv_heads, n, head_dim], rotated, of the positions 0 to n - 1. Heads h * (heads / kv_heads) and the next
            ones share key head h.
        scale: usually head_dim ** -0.5.
        first_position: of the first row.

    Returns:
        float32 [heads, m, n].
    """
    heads, m, head_dim = query.shape
    kv_heads, n, _ = keys.shape
    if heads % kv_heads:
        raise ValueError(f"{heads} heads can't share {kv_heads} key heads")
    grouped = query.reshape(kv_heads, heads // kv_heads * m, head_dim)
    scores = torch.matmul(grouped, keys.transpose(1, 2)).float().mul_(scale).view(heads, m, n)
    if n > first_position + 1:  # columns that are masked for some rows
        later = scores[:, :, first_position + 1 :]
        hidden = torch.ones(later.shape[1:], dtype=torch.bool, device=scores.device).triu_()
        later.masked_fill_(hidden, -torch.inf)
    return scores.softmax(-1)


def row_chunks(
    query: Tensor, keys: Tensor, scale: float, first_position: int = 0, max_elements: int = 2**24
) -> Iterator[tuple[int, Tensor]]:
    """Yield all rows in chunks, each with its unmasked columns: never n x n for all heads at once.

    Args:
        query, keys, scale, first_position: as for `tail_probabilities`.
        max_elements: float32 values per chunk; a single row is never split.

    Yields:
        (first row, float32 [heads, rows, first row + rows]), ready for a collector.
    """
    heads, m, _ = query.shape
    begin = 0
    while begin < m:
        columns = min(keys.shape[1], first_position + m)
        rows = min(m - begin, max(1, max_elements // (heads * columns)))
        first = first_position + begin
        seen = keys[:, : first + rows]
        yield first, tail_probabilities(query[:, begin : begin + rows], seen, scale, first)
        begin += rows
