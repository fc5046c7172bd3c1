"""Rotation before quantizing: outlier channels are spread over all channels."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kvcache.quantizers.base import Quantizer, Shape, rounding, within
from kvcache.quantizers.symmetric import Symmetric


@dataclass(frozen=True)
class Rotated(Quantizer):
    """A normalised Hadamard rotation of each head's vectors (QuaRot, Ashkboos et al. 2024), then `inner`.

    Vectors whose length isn't a power of two are rotated in blocks of its largest power of two. Bytes are those of
    `inner`.
    """

    inner: Symmetric

    def encode(self, x: Tensor) -> Tensor:
        return self.inner.encode(_turned(x.float()))

    def decode(self, buffer: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
        return within(_turned(self.inner.decode(buffer, shape, torch.float32)), dtype).to(dtype)

    def size(self, shape: Shape) -> int:
        return self.inner.size(shape)

    def bound(self, x: Tensor) -> Tensor:
        """The errors of all values of a block add up at worst, each times the rotation's entry."""
        turned = _turned(x.float())
        block = _block(x.shape[-1])
        errors = self.inner.bound(turned).unflatten(-1, (-1, block))
        sums = errors.sum(-1, keepdim=True).expand(errors.shape).flatten(-2) * block**-0.5
        largest = turned.abs().unflatten(-1, (-1, block)).amax(-1, keepdim=True).expand(errors.shape).flatten(-2)
        return sums + block * rounding(largest, torch.float32) + rounding(x.abs().float() + sums, x.dtype)


def _turned(x: Tensor) -> Tensor:
    """The rotation, which is its own inverse."""
    block = _block(x.shape[-1])
    return (x.unflatten(-1, (-1, block)) @ _hadamard(block).to(x.device)).flatten(-2)


def _block(length: int) -> int:
    return length & -length


@lru_cache(maxsize=16)
def _hadamard(size: int) -> Tensor:
    """Sylvester's matrix of a power of two, float32 [size, size], symmetric and orthogonal."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix * size**-0.5
