"""Caches and tensors that tests draw."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from kvcache.cache import DTYPES, Geometry, KVCache


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, magnitude: float = 1.0) -> Tensor:
    """Values of a seed; a channel that is much larger than the others, as keys have, and a token of zeros."""
    values = magnitude * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    values[..., 0] *= 10
    values[:, 1::7] = 0
    return values.to(dtype)


SMALL = Geometry(3, 2, 8, torch.bfloat16)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any shape around the group sizes, any dtype, magnitudes that fp16 scales can and can't resolve."""
    shape = draw(st.integers(1, 3)), draw(st.integers(0, 140)), draw(st.integers(1, 20))
    magnitude = 10.0 ** draw(st.integers(-9, 3))
    return normal(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 1000)), magnitude)


def small_cache(geometry: Geometry = SMALL, length: int = 40, kept: int | None = None, seed: int = 0) -> KVCache:
    """A cache of random values that keeps `kept` random positions of `length`."""
    layers = tuple(
        (
            normal(geometry.shape(length), geometry.dtype, seed + 2 * layer),
            normal(geometry.shape(length), geometry.dtype, seed + 2 * layer + 1),
        )
        for layer in range(geometry.layers)
    )
    cache = KVCache.whole(layers)
    if kept is None:
        return cache
    places = torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:kept]
    return cache.keep(places.sort().values)
