"""The key-value cache of one sequence, whole or pruned."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes of caches; the wire format encodes them as indices into this tuple."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The shape of a model's cache, independent of the sequence."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.layers} layers x {self.kv_heads} heads x {self.head_dim}, {dtype}"

    def shape(self, kept: int) -> tuple[int, int, int]:
        """Shape of the keys, or of the values, of one layer with `kept` positions."""
        return self.kv_heads, kept, self.head_dim

    def nbytes(self, kept: int) -> int:
        """Memory (bytes) of a cache with `kept` positions."""
        return 2 * self.layers * self.kv_heads * kept * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class KVCache:
    """Keys and values of every layer for the kept positions of one sequence.

    Keys are stored rotated, so a pruned cache stays valid if the tokens after it get the position ids `length`,
    `length + 1`, ... of the original sequence.

    Attributes:
        layers: (keys, values) of every layer, each [kv_heads, kept, head_dim].
        positions: int64 [kept], strictly ascending, on the CPU: the kept positions of the original sequence.
        length: the length of the original sequence, in positions.

    Raises:
        ValueError: shapes, dtypes or devices differ between layers, or the positions don't fit them.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    positions: Tensor
    length: int

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("a cache without layers")
        first = self.layers[0][0]
        if first.dim() != 3 or first.dtype not in DTYPES:
            raise ValueError(f"keys of shape {tuple(first.shape)} and {first.dtype}, not [kv_heads, kept, head_dim]")
        shape, dtype, device = first.shape, first.dtype, first.device
        for index, layer in enumerate(self.layers):
            for tensor in layer:
                if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
                    raise ValueError(f"layer {index} differs in shape, dtype or device from layer 0")
        check_positions(self.positions, self.length)
        if len(self.positions) != first.shape[1]:
            raise ValueError(f"{len(self.positions)} positions for layers that keep {first.shape[1]}")

    @classmethod
    def whole(cls, layers: tuple[tuple[Tensor, Tensor], ...]) -> Self:
        """A cache of a whole sequence, without dropped positions."""
        length = layers[0][0].shape[1]
        return cls(layers, torch.arange(length), length)

    @property
    def kept(self) -> int:
        """The number of positions in the cache."""
        return len(self.positions)

    @property
    def geometry(self) -> Geometry:
        """Layers, heads, head size and dtype."""
        keys = self.layers[0][0]
        return Geometry(len(self.layers), keys.shape[0], keys.shape[2], keys.dtype)

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return self.geometry.nbytes(self.kept)

    def keep(self, positions: Tensor) -> "KVCache":
        """The cache pruned to these positions; `length` is unchanged.

        Args:
            positions: int64, strictly ascending, positions of the original sequence.

        Raises:
            ValueError: a position isn't in this cache.
        """
        positions = positions.cpu()
        rows = self.rows_of(positions)
        if len(rows) == self.kept:
            return self
        rows = rows.to(self.layers[0][0].device)
        layers = tuple((keys.index_select(1, rows), values.index_select(1, rows)) for keys, values in self.layers)
        return KVCache(layers, positions, self.length)

    def rows_of(self, positions: Tensor) -> Tensor:
        """The places of positions in this cache: int64, on the CPU. Arguments and errors as for `keep`."""
        positions = positions.cpu()
        check_positions(positions, self.length)
        rows = torch.searchsorted(self.positions, positions)
        if len(positions) and (rows[-1] >= self.kept or not torch.equal(self.positions[rows], positions)):
            raise ValueError("positions that this cache doesn't hold")
        return rows

    def to(self, device: torch.device | str) -> "KVCache":
        """The same cache on another device."""
        layers = tuple((keys.to(device), values.to(device)) for keys, values in self.layers)
        return KVCache(layers, self.positions, self.length)


def check_positions(positions: Tensor, length: int) -> None:
    """Raise ValueError unless positions are int64 on the CPU, strictly ascending and within a sequence of `length`."""
    if positions.dtype != torch.int64 or positions.dim() != 1 or positions.device.type != "cpu":
        raise ValueError("positions must be one row of int64 on the CPU")
    if len(positions) and not (positions[0] >= 0 and positions[-1] < length and bool((positions.diff() > 0).all())):
        raise ValueError(f"positions must be strictly ascending and lie in 0..{length - 1}")
