"""Entropy-coded differences to anchor tokens, after CacheGen; for comparison."""

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kvcache.quantizers.base import QuantizeError, Quantizer, Shape, rounding, within
from kvcache.quantizers.symmetric import Symmetric

STORED, DEFLATED = 0, 1


@dataclass(frozen=True)
class Delta(Quantizer):
    """Every `group`th token is an anchor in 8 bits; the others are differences to their anchor in `bits`, deflated.

    After CacheGen (Liu et al. 2024), which has the same anchors and groups of 10 tokens, but fits its bins and an
    arithmetic coder to each channel beforehand. Here the coder is zlib at level 1, skipped if it doesn't shrink the
    data. Differences are to the decoded anchors, so an anchor's error doesn't add to the others'.

    Bytes: the anchors by `Symmetric(8)`; one byte, 1 if the rest is deflated; the differences by `Symmetric(bits)`.
    """

    bits: Literal[4, 8] = 4
    group: int = 10

    def encode(self, x: Tensor) -> Tensor:
        anchors, differences = self._differences(x)
        raw = Symmetric(self.bits).encode(differences).cpu().numpy()
        deflated = np.frombuffer(zlib.compress(raw.data, 1), np.uint8)
        pays = len(deflated) < len(raw)
        rest = torch.from_numpy(np.concatenate(([np.uint8(pays)], deflated if pays else raw), dtype=np.uint8))
        return torch.cat((anchors, rest.to(x.device)))

    def decode(self, buffer: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
        n = shape[1]
        anchor_shape, other_shape = self._shapes(shape)
        end = Symmetric(8).size(anchor_shape)
        size = Symmetric(self.bits).size(other_shape)
        if len(buffer) <= end or int(buffer[end]) not in (STORED, DEFLATED):
            raise QuantizeError("differences that are neither stored nor deflated")
        rest = buffer[end + 1 :].clone()  # copied, because fp16 scales after a single byte are unaligned
        if int(buffer[end]) == DEFLATED:
            rest = torch.frombuffer(_inflated(rest.cpu().numpy(), size), dtype=torch.uint8).to(buffer.device)
        anchors = Symmetric(8).decode(buffer[:end], anchor_shape, torch.float32)
        differences = Symmetric(self.bits).decode(rest, other_shape, torch.float32)
        out = torch.empty(shape, dtype=torch.float32, device=buffer.device)
        others = self._others(n)
        out[:, :: self.group] = anchors
        out[:, others] = differences + anchors[:, others // self.group]
        return within(out, dtype).to(dtype)

    def size(self, shape: Shape) -> None:
        return None

    def max_size(self, shape: Shape) -> int:
        anchor_shape, other_shape = self._shapes(shape)
        return Symmetric(8).size(anchor_shape) + 1 + Symmetric(self.bits).size(other_shape)

    def bound(self, x: Tensor) -> Tensor:
        bound = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        bound[:, :: self.group] = Symmetric(8).bound(x[:, :: self.group].float())
        bound[:, self._others(x.shape[1])] = Symmetric(self.bits).bound(self._differences(x)[1])
        return bound + rounding(x.abs().float() + bound, x.dtype) + rounding(x, torch.float32)

    def _differences(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded anchors, and float32 differences of the other tokens to the anchors as decoded."""
        values = x.float()
        first = values[:, :: self.group].contiguous()
        anchors = Symmetric(8).encode(first)
        heads, n, head_dim = first.shape
        decoded = Symmetric(8).decode(anchors, (heads, n, head_dim), torch.float32)
        others = self._others(x.shape[1])
        return anchors, values[:, others] - decoded[:, others // self.group]

    def _others(self, n: int) -> Tensor:
        """Indices of the tokens that aren't anchors."""
        tokens = torch.arange(n)
        return tokens[tokens % self.group > 0]

    def _shapes(self, shape: Shape) -> tuple[Shape, Shape]:
        heads, n, head_dim = shape
        anchors = -(-n // self.group)
        return (heads, anchors, head_dim), (heads, n - anchors, head_dim)


def _inflated(deflated: np.ndarray, size: int) -> bytearray:
    """Inflate exactly `size` bytes, without trusting the stream's length."""
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(deflated.data, size + 1)
    except zlib.error as error:
        raise QuantizeError(f"differences that can't be inflated: {error}") from None
    if len(inflated) != size or not stream.eof or stream.unused_data:
        raise QuantizeError(f"differences that don't inflate to {size} bytes")
    return bytearray(inflated)
