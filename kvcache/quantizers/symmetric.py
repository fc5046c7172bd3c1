"""Symmetric quantization to 8 or 4 bits, with an fp16 scale per token, or per channel and group of tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kvcache.quantizers.base import QuantizeError, Quantizer, Shape, rounding, within

CHUNK = 2**17  # values per step on a CPU: few enough for their float32 copies to stay in a core's cache
# The bit patterns of non-negative floats are ordered like integers, which compare faster.
AS_INTEGERS = {torch.float32: (torch.int32, 2**31 - 1)} | dict.fromkeys(
    (torch.float16, torch.bfloat16), (torch.int16, 2**15 - 1)
)
SMALLEST = 2.0**-24  # positive fp16
# Added before rounding to fp16, so that a subnormal scale is never rounded down and codes stay in range; 0 stays 0, and
# larger scales are unaffected.
NUDGE = SMALLEST / 2


@dataclass(frozen=True)
class Symmetric(Quantizer):
    """Codes in [-qmax, qmax] times a scale, qmax = 2 ** (bits - 1) - 1, scale = max |x| / qmax in fp16.

    Attributes:
        bits: 8 or 4. Four bits are stored plus 8, two codes a byte: the first half of a row in the low nibbles, the
            second in the high ones.
        group: None for a scale for each head and token over head_dim; else a scale for each head and channel over so
            many tokens (the last group of a head may be shorter): the axes that KIVI (Liu et al. 2024) takes for keys.

    Bytes: all scales (little-endian fp16; by head, then token; or by head, group, channel), then all codes (by head,
    token, channel).
    """

    bits: Literal[4, 8]
    group: int | None = None

    def encode(self, x: Tensor) -> Tensor:
        out = torch.empty(self.size(_shape(x)), dtype=torch.uint8, device=x.device)
        scales, codes = self._split(out, _shape(x))
        for piece, scale, code in self._pieces(x, scales, codes):
            pack(piece, scale, code, self.bits, -1 if self.group is None else -2)
        if not scales.isfinite().all():
            largest = x.abs().max().item()
            raise QuantizeError(f"values as large as {largest:g} can't be quantized to {self.bits} bits")
        return out

    def decode(self, buffer: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
        self.check_size(buffer, shape)
        scales, codes = self._split(buffer, shape)
        if not (scales.isfinite() & (scales >= 0)).all():
            raise QuantizeError("scales that are negative or not finite")
        out = torch.empty(shape, dtype=dtype, device=buffer.device)
        for piece, scale, code in self._pieces(out, scales, codes):
            unpack(code, scale, piece, self.bits)
        return out

    def size(self, shape: Shape) -> int:
        heads, n, head_dim = shape
        return 2 * self._scales(shape) + heads * n * _width(head_dim, self.bits)

    def bound(self, x: Tensor) -> Tensor:
        """Half a quantization step, plus the rounding errors of the step and the result."""
        scale = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        scales, codes = self._split(self.encode(x), _shape(x))
        for piece, found, _ in self._pieces(scale, scales, codes):
            piece.copy_(found.expand(piece.shape))
        step = torch.where(scale > 0, scale * (0.5 + 1e-4), x.abs().float())
        return step + rounding(x.abs().float() + scale, x.dtype)

    def _scales(self, shape: Shape) -> int:
        heads, n, head_dim = shape
        return heads * n if self.group is None else heads * -(-n // self.group) * head_dim

    def _split(self, buffer: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """Scales (fp16, one row) and codes (uint8 [heads, n, width]) within a buffer."""
        end = 2 * self._scales(shape)
        return buffer[:end].view(torch.float16), buffer[end:].view(shape[0], shape[1], _width(shape[2], self.bits))

    def _pieces(self, x: Tensor, scales: Tensor, codes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield views of the same part of values, scales and codes: small parts on a CPU, large ones elsewhere.

        The values are [..., head_dim], the scales broadcast to them, the codes are [..., width].
        """
        heads, n, head_dim = x.shape
        if not x.numel():
            return
        limit = CHUNK if x.device.type == "cpu" else x.numel()
        if self.group is None:
            rows, at_once = heads * n, max(1, limit // head_dim)
            x, codes = x.reshape(rows, head_dim), codes.view(rows, -1)
            for begin in range(0, rows, at_once):
                part = slice(begin, begin + at_once)
                yield x[part], scales[part, None], codes[part]
            return
        by_group = scales.view(heads, -1, 1, head_dim)
        full = n // self.group
        some = min(heads, max(1, limit // (n * head_dim)))
        at_once = max(1, limit // (some * self.group * head_dim))
        for first in range(0, heads, some):
            these = slice(first, first + some)
            for begin in range(0, full, at_once):
                end = min(full, begin + at_once)
                part, groups = slice(begin * self.group, end * self.group), (end - begin, self.group)
                yield (
                    x[these, part].unflatten(1, groups),
                    by_group[these, begin:end],
                    codes[these, part].unflatten(1, groups),
                )
            if n % self.group:
                rest = slice(full * self.group, n)
                yield x[these, rest], by_group[these, full], codes[these, rest]


def pack(x: Tensor, scales: Tensor, codes: Tensor, bits: int, dim: int) -> None:
    """Write codes (uint8 [..., width]) and scales (fp16, `dim` of length 1) of values [..., head_dim]."""
    integer, mask = AS_INTEGERS[x.dtype]
    largest = (x.view(integer) & mask).amax(dim, keepdim=True).view(x.dtype).float()
    scales.copy_(largest.mul_(1 / (2 ** (bits - 1) - 1)).add_(NUDGE))
    inverse = scales.float().clamp_min_(SMALLEST).reciprocal_()
    steps = x.to(torch.float32, copy=True).mul_(inverse).round_()
    stored = codes.view(torch.int8)
    if bits == 8:
        stored.copy_(steps)
        return
    steps = steps.to(torch.int8)
    if x.shape[-1] % 2:
        steps = F.pad(steps, (0, 1))
    half = codes.shape[-1]
    # Low + 16 high, each plus 8, modulo 256 as int8 is.
    torch.add(steps[..., :half], steps[..., half:], alpha=16, out=stored).sub_(120)


def unpack(codes: Tensor, scales: Tensor, out: Tensor, bits: int) -> None:
    """Write the values [..., head_dim] of codes and scales as `pack` gives them."""
    if bits == 4:
        half = codes.shape[-1]
        pairs = torch.empty(*codes.shape[:-1], 2 * half, dtype=torch.uint8, device=codes.device)
        pairs[..., :half] = codes & 15
        pairs[..., half:] = codes >> 4
        codes = pairs.sub_(8)[..., : out.shape[-1]]
    out.copy_(within(codes.view(torch.int8).float().mul_(scales.float()), out.dtype))


def _width(head_dim: int, bits: int) -> int:
    """Bytes of one row of codes."""
    return head_dim if bits == 8 else (head_dim + 1) // 2


def _shape(x: Tensor) -> Shape:
    heads, n, head_dim = x.shape
    return heads, n, head_dim
