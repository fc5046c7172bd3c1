"""The interface of quantizers, and schemes: a quantizer for keys and one for values."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, int, int]
"""Of keys or values: [kv_heads, positions, head_dim]."""


class QuantizeError(ValueError):
    """Values can't be quantized, or bytes can't be decoded."""


class Quantizer(ABC):
    """Packs the keys or the values of a layer into bytes and back. Stateless; works on the tensor's device."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Packed bytes.

        Args:
            x: floating point [kv_heads, positions, head_dim].

        Returns:
            uint8, one row, on the device of `x`.

        Raises:
            QuantizeError: values are not finite, or too large.
        """

    @abstractmethod
    def decode(self, buffer: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
        """The values in `buffer` (uint8, one row), up to `bound`, on its device.

        Raises:
            QuantizeError: the buffer's size doesn't match the shape, or it holds bytes that `encode` never writes.
        """

    @abstractmethod
    def size(self, shape: Shape) -> int | None:
        """The exact size of an encoded shape, in bytes; None if it depends on the values."""

    def max_size(self, shape: Shape) -> int:
        """The largest size of an encoded shape, in bytes."""
        size = self.size(shape)
        assert size is not None
        return size

    @abstractmethod
    def bound(self, x: Tensor) -> Tensor:
        """The maximum error of decoded values: float32, one for each element of `x`, or one for all."""

    def check_size(self, buffer: Tensor, shape: Shape) -> None:
        """Raise QuantizeError unless the buffer has the shape's size."""
        if len(buffer) != self.size(shape):
            raise QuantizeError(f"{len(buffer)} bytes for {tuple(shape)}, which needs {self.size(shape)}")


@dataclass(frozen=True, slots=True)
class Scheme:
    """A quantization scheme of cache layers; `code` is its number on the wire, which must never be reused."""

    name: str
    code: int
    keys: Quantizer
    values: Quantizer

    def encode(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Packed keys and packed values of a layer."""
        return self.keys.encode(keys), self.values.encode(values)

    def decode(self, keys: Tensor, values: Tensor, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Decode a layer; returns (keys, values)."""
        return self.keys.decode(keys, shape, dtype), self.values.decode(values, shape, dtype)


def rounding(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The maximum error of rounding values of this magnitude to `dtype`."""
    info = torch.finfo(dtype)
    return x.abs().float() * info.eps + info.tiny * info.eps


def within(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Clamp float32 values in place to the range of `dtype` if that is float16."""
    if dtype == torch.float16:
        largest = torch.finfo(dtype).max
        x.clamp_(-largest, largest)
    return x
