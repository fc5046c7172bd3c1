"""Column sums of attention for scores, of all layers by two kernel launches: rows are never stored."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kvcache.cache import DTYPES
from kvcache.fused import score_kernels as kernels
from kvcache.fused.launching import call, items_of, row_of, upload

COLUMNS: int = kernels.COLUMNS.value
SPLITS = 16  # of the keys, at most, when there are few rows
SPLIT_KEYS = 256  # at least, of a split
PROGRAMS = 1024  # as many keep a GPU busy


class Tile(NamedTuple):
    """Rows and keys of a product, and the warps of a program."""

    rows: int
    keys: int
    warps: int


FEW, MANY = (
    Tile(64, 128, 4),
    Tile(128, 64, 4),
)  # by measurements on an H200: for the rows of a query, and for those of a prompt


class Shares(NamedTuple):
    """How the work is divided: keys of a split and splits; rows of a part and parts."""

    tile: Tile
    keys: int
    splits: int
    rows: int
    parts: int


def suits(query: Tensor, keys: Tensor) -> bool:
    """Whether kernels exist for such tensors."""
    return query.is_cuda and 16 <= query.shape[-1] <= 256 and query.dtype in DTYPES and query.dtype == keys.dtype


@lru_cache(maxsize=256)
def shares_of(pairs: int, group: int, m: int, n: int) -> Shares:
    """For `pairs` of layer and key head, each with `group` heads of m rows, and n keys."""
    rows = group * m
    if m >= 2 * MANY.rows:
        return Shares(MANY, n, 1, m, group)
    splits = min(SPLITS, max(1, PROGRAMS // (pairs * -(-rows // FEW.rows))))
    keys = -(-max(SPLIT_KEYS, -(-n // splits)) // FEW.keys) * FEW.keys
    parts = min(-(-rows // FEW.rows), max(1, PROGRAMS // (pairs * -(-n // FEW.keys))))
    some = -(-rows // (parts * FEW.rows)) * FEW.rows
    return Shares(FEW, keys, max(2, -(-n // keys)), some, -(-rows // some))


def column_sums(
    queries: Sequence[Tensor], keys: Sequence[Tensor], m: int, scale: float, first_rows: Sequence[int]
) -> list[Tensor]:
    """Causal attention summed over layers, heads, and the rows from a position on, without waiting for it.

    Args:
        queries: of each layer, [1, heads, at least m, head_dim], rotated; the last m are of the last m of n positions.
        keys: of each layer, [1, kv_heads, n, head_dim], rotated.
        m: rows of each head.
        scale: of the products.
        first_rows: positions; rows before the last m positions are not there, and count as zeros.

    Returns:
        For each of `first_rows`, float32 [n]: the sums over rows.
    """
    (_, heads, given, head_dim), (_, kv_heads, n, _) = queries[0].shape, keys[0].shape
    size, device = queries[0].element_size(), keys[0].device
    row, numbers = row_of(COLUMNS * len(keys), device)
    table = numbers.reshape(-1, COLUMNS)
    queries, keys = _contiguous(queries), _contiguous(keys)
    for columns, tensors, skipped in ((table[:, :3], queries, given - m), (table[:, 3:], keys, 0)):
        columns[:, 1:] = [tensor.stride()[1:3] for tensor in tensors]
        columns[:, 0] = [tensor.data_ptr() for tensor in tensors]
        columns[:, 0] += size * skipped * columns[:, 2]
    items = items_of(table[:, ::3].ravel(), int(np.bitwise_or.reduce(table[:, (1, 2, 4, 5)], None)), size)
    there = upload(row, device)
    pairs, group = len(keys) * kv_heads, heads // kv_heads
    shares = shares_of(pairs, group, m, n)
    tile, one = shares.tile, shares.splits == 1
    statistics = torch.empty((2, pairs, shares.splits, group * m), dtype=torch.float32, device=device).unbind()
    wide = max(16, 1 << (head_dim - 1).bit_length())
    constants = (kv_heads, group, DTYPES.index(queries[0].dtype), head_dim, wide, items, tile.rows, tile.keys)
    scale *= math.log2(math.e)
    grid = (-(-group * m // tile.rows), shares.splits, pairs)
    call(kernels.row_statistics, grid, (there, *statistics, n, m, scale, shares.keys), constants, tile.warps)
    found = []
    for first_row in first_rows:
        out = torch.empty((pairs * shares.parts, n), dtype=torch.float32, device=device)
        arguments = (there, *statistics, out, n, m, scale, shares.splits, shares.rows, first_row)
        grid = (-(-n // tile.keys), shares.parts, pairs)
        call(kernels.column_sums, grid, arguments, (*constants, one), tile.warps)
        found.append(out.sum(0))
    return found


def _contiguous(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """With contiguous channels."""
    if all(tensor.stride(3) == 1 for tensor in tensors):
        return tensors
    return [tensor.contiguous() for tensor in tensors]
