"""What a quantizer is, and the pairs of them that a layer's keys and values go through."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, int, int]
"""Of keys or values: [kv_heads, positions, head_dim]."""


class QuantizeError(ValueError):
    """Values that can't be quantized, or bytes that are no quantized values."""


class Quantizer(ABC):
    """Turns the keys or the values of a layer into packed bytes and back. Stateless; works where the tensor lives."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Packed bytes.

        Args:
            x: floating point [kv_heads, positions, head_dim].

        Returns:
            uint8, one row, on the device of `x`.

        Raises:
            QuantizeError: values that are not finite, or too large.
        """

    @abstractmethod
    def decode(self, buffer: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
        """The values in `buffer` (uint8, one row), up to `bound`, on its device.

        Raises:
            QuantizeError: the buffer has another length than such a shape needs, or holds what `encode` never writes.
        """

    @abstractmethod
    def size(self, shape: Shape) -> int | None:
        """Exact length of what `encode` gives for a shape, in bytes; None where that depends on the values."""

    def max_size(self, shape: Shape) -> int:
        """No encoding of this shape is longer."""
        size = self.size(shape)
        assert size is not None
        return size

    @abstractmethod
    def bound(self, x: Tensor) -> Tensor:
        """How far decoded values can be from `x` at most: float32, one for each element, or one for all."""

    def check_size(self, buffer: Tensor, shape: Shape) -> None:
        """Raises QuantizeError unless the buffer has the length that the shape needs."""
        if len(buffer) != self.size(shape):
            raise QuantizeError(f"{len(buffer)} bytes for {tuple(shape)}, which needs {self.size(shape)}")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the layers of a cache are quantized: `code` is its number on the wire, never used again for another one."""

    name: str
    code: int
    keys: Quantizer
    values: Quantizer

    def encode(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Packed keys and packed values of a layer."""
        return self.keys.encode(keys), self.values.encode(values)

    def decode(self, keys: Tensor, values: Tensor, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The layer in two buffers."""
        return self.keys.decode(keys, shape, dtype), self.values.decode(values, shape, dtype)


def rounding(x: Tensor, dtype: torch.dtype) -> Tensor:
    """How far rounding to `dtype` can move values of about this magnitude."""
    info = torch.finfo(dtype)
    return x.abs().float() * info.eps + info.tiny * info.eps


def within(x: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 values, changed in place where rounding has put them beyond the range of float16."""
    if dtype == torch.float16:
        largest = torch.finfo(dtype).max
        x.clamp_(-largest, largest)
    return x
