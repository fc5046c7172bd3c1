"""A cache knows what it holds, and pruning takes exactly the positions asked for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvcache.cache import Geometry, KVCache

Layers = tuple[tuple[torch.Tensor, torch.Tensor], ...]


def numbered(length: int, layers: int = 2, heads: int = 2, head_dim: int = 3) -> KVCache:
    """A cache whose every value says its layer, part and position."""
    place = torch.arange(length, dtype=torch.float32)[None, :, None].expand(heads, length, head_dim)
    return KVCache.whole(tuple((place + 1000 * i, place + 1000 * i + 500) for i in range(layers)))


@given(st.data())
def test_keeping_twice_is_keeping_once(data: st.DataObject) -> None:
    cache = numbered(20)
    first = sorted(data.draw(st.sets(st.integers(0, 19), min_size=1)))
    second = sorted(data.draw(st.sets(st.sampled_from(first))))
    pruned = cache.keep(torch.tensor(first)).keep(torch.tensor(second, dtype=torch.int64))
    assert pruned.positions.tolist() == second
    assert (pruned.kept, pruned.length) == (len(second), 20), "position ids continue from the original length"
    for index, (keys, values) in enumerate(pruned.layers):
        assert keys[0, :, 0].tolist() == [1000 * index + p for p in second]
        assert values[1, :, 2].tolist() == [1000 * index + 500 + p for p in second]


def test_what_is_not_there_cannot_be_kept() -> None:
    pruned = numbered(10).keep(torch.tensor([1, 4, 7]))
    for wrong in ([2], [4, 8], [9], [4, 4], [7, 1], [-1], [10]):
        with pytest.raises(ValueError, match="positions"):
            pruned.keep(torch.tensor(wrong))


def test_size_and_geometry() -> None:
    cache = numbered(10)
    assert cache.geometry == Geometry(2, 2, 3, torch.float32)
    assert cache.nbytes == sum(t.nbytes for layer in cache.layers for t in layer) == 2 * 2 * 2 * 10 * 3 * 4
    assert cache.keep(torch.tensor([3])).nbytes == cache.nbytes / 10


def test_a_cache_that_does_not_fit_together_is_refused() -> None:
    layer = torch.zeros(2, 5, 4)
    places = torch.arange(5)
    wrong: dict[str, tuple[Layers, torch.Tensor, int]] = {
        "without layers": ((), places, 5),
        "layer 0 differs": (((layer, layer.double()),), places, 5),
        "layer 1 differs": (((layer, layer), (layer, layer[:, :4])), places, 5),
        "kv_heads": (((layer[0], layer[0]),), places, 5),
        "4 positions": (((layer, layer),), places[:4], 5),
        "lie in": (((layer, layer),), places, 4),
        "int64": (((layer, layer),), places.float(), 5),
    }
    for message, arguments in wrong.items():
        with pytest.raises(ValueError, match=message):
            KVCache(*arguments)
