"""Attention of one new token per sequence over preallocated caches, with memory traffic only for used positions.

SDPA's fused kernels support either a mask or the split over positions that keeps a GPU busy with one token, not both.
So this is flash decoding (Dao et al. 2023) as two small Triton kernels. They read the number of positions on the
device, so one captured graph serves every length, and a shorter cache takes less time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton  # type: ignore[import-not-found,unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
except ImportError:  # torch without CUDA
    triton = None

CHUNK = 128  # positions per program
STEP = 64  # positions per step of a program


def attend_plain(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, scale: float) -> Tensor:
    """Attention of query [batch, heads, head_dim] over positions 0 to slots [batch] of keys and values.

    Keys and values are [batch, kv_heads, capacity, head_dim]; values behind the slots must be finite.

    Returns:
        [batch, heads, head_dim].
    """
    grouped = query.view(query.shape[0], keys.shape[1], -1, query.shape[2])
    seen = torch.arange(keys.shape[2], device=keys.device) <= slots[:, None]
    mask = seen[:, None, None].expand(-1, -1, grouped.shape[2], -1)
    return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale).view_as(query)


class SplitAttention:
    """`attend_plain` for GPUs, with buffers for partial results."""

    def __init__(self, batch: int, heads: int, kv_heads: int, head_dim: int, capacity: int, device: torch.device):
        splits = -(-capacity // CHUNK)
        self._partial = torch.empty(batch * heads, splits, head_dim, dtype=torch.float32, device=device)
        self._statistics = torch.empty(2, batch * heads, splits, dtype=torch.float32, device=device)
        self._group = heads // kv_heads

    @staticmethod
    def unsuited(head_dim: int) -> str:
        """Why it can't be used here; empty if it can."""
        if triton is None:
            return "Triton is not installed"
        if head_dim not in (16, 32, 64, 128, 256):
            return f"heads of {head_dim} are no power of two from 16 to 256"
        return ""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, scale: float) -> Tensor:
        batch, heads, head_dim = query.shape
        kv_heads, capacity = keys.shape[1:3]
        splits = self._partial.shape[1]
        out = torch.empty_like(query)
        _chunks[(batch * kv_heads, splits)](
            query, keys, values, slots, self._partial, self._statistics[0], self._statistics[1],
            scale, capacity, splits, KV_HEADS=kv_heads, GROUP=self._group, ROWS=max(16, _power(self._group)),
            DIM=head_dim, CHUNK=CHUNK, STEP=STEP,
        )  # fmt: skip
        _together[(batch * heads,)](
            self._partial, self._statistics[0], self._statistics[1], slots, out,
            splits, HEADS=heads, DIM=head_dim, CHUNK=CHUNK, SPLITS=32,
        )  # fmt: skip
        return out


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


if triton is not None:

    @triton.jit
    def _chunks(  # type: ignore[no-untyped-def]
        query, keys, values, slots, partial, tops, sums, scale, capacity, splits,
        KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr,
        CHUNK: tl.constexpr, STEP: tl.constexpr,
    ):  # fmt: skip
        """One chunk of positions for all heads that share a key head: unnormalized output, row maximum and row sum."""
        pair = tl.program_id(0).to(tl.int64)  # of sequence and key head
        split = tl.program_id(1)
        count = tl.load(slots + pair // KV_HEADS).to(tl.int32) + 1
        begin = split * CHUNK
        if begin < count:
            row = tl.arange(0, ROWS)
            dim = tl.arange(0, DIM)
            real = row < GROUP
            head = pair * GROUP + row
            q = tl.load(query + head[:, None] * DIM + dim[None, :], mask=real[:, None], other=0.0)
            top = tl.full([ROWS], float("-inf"), tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            acc = tl.zeros([ROWS, DIM], tl.float32)
            for at in range(begin, tl.minimum(begin + CHUNK, count), STEP):
                position = at + tl.arange(0, STEP)
                seen = position < count
                offsets = (pair * capacity + position)[:, None] * DIM + dim[None, :]
                k = tl.load(keys + offsets, mask=seen[:, None], other=0.0)
                scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
                scores = tl.where(seen[None, :], scores, float("-inf"))
                higher = tl.maximum(top, tl.max(scores, 1))
                weights = tl.exp(scores - higher[:, None])
                rescale = tl.exp(top - higher)
                v = tl.load(values + offsets, mask=seen[:, None], other=0.0)
                acc = acc * rescale[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
                total = total * rescale + tl.sum(weights, 1)
                top = higher
            place = head * splits + split
            tl.store(partial + place[:, None] * DIM + dim[None, :], acc, mask=real[:, None])
            tl.store(tops + place, top, mask=real)
            tl.store(sums + place, total, mask=real)

    @triton.jit
    def _together(  # type: ignore[no-untyped-def]
        partial, tops, sums, slots, out, splits,
        HEADS: tl.constexpr, DIM: tl.constexpr, CHUNK: tl.constexpr, SPLITS: tl.constexpr,
    ):  # fmt: skip
        """Combine the chunks of one head of one sequence."""
        head = tl.program_id(0).to(tl.int64)
        count = (tl.load(slots + head // HEADS).to(tl.int32) + CHUNK) // CHUNK  # chunks of slot + 1 positions
        dim = tl.arange(0, DIM)
        top = float("-inf")
        total = 0.0
        acc = tl.zeros([DIM], tl.float32)
        for at in range(0, count, SPLITS):
            split = at + tl.arange(0, SPLITS)
            there = split < count
            place = head * splits + split
            tops_here = tl.load(tops + place, mask=there, other=float("-inf"))
            higher = tl.maximum(top, tl.max(tops_here, 0))
            weights = tl.where(there, tl.exp(tops_here - higher), 0.0)
            rescale = tl.exp(top - higher)
            sums_here = tl.load(sums + place, mask=there, other=0.0)
            some = tl.load(partial + place[:, None] * DIM + dim[None, :], mask=there[:, None], other=0.0)
            acc = acc * rescale + tl.sum(some * weights[:, None], 0)
            total = total * rescale + tl.sum(weights * sums_here, 0)
            top = higher
        tl.store(out + head * DIM + dim, (acc / total).to(out.dtype.element_ty))
