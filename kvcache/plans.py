"""Plans: which quantizer each layer of a cache gets, and the probe that finds the layers that four bits hurt."""

from collections.abc import Callable, Sequence

from kvcache.cache import KVCache
from kvcache.quantizers import QUANTIZERS

Plan = tuple[str, ...]
"""The quantizer of every layer, by name."""


def plan_of(plan: str | Sequence[str], layers: int) -> Plan:
    """A plan for so many layers: one name for all of them, or one each.

    Raises:
        ValueError: an unknown name, or a plan for another number of layers; the message says what there is.
    """
    names = (plan,) * layers if isinstance(plan, str) else tuple(plan)
    if unknown := set(names) - set(QUANTIZERS):
        raise ValueError(f"no quantizer {', '.join(sorted(unknown))}; there are {', '.join(QUANTIZERS)}")
    if len(names) != layers:
        raise ValueError(f"a plan for {len(names)} layers, where the cache has {layers}")
    return names


def quantized(cache: KVCache, plan: str | Sequence[str]) -> KVCache:
    """The cache as a receiver would have it: every layer encoded and decoded."""
    names = plan_of(plan, len(cache.layers))
    shape, dtype = cache.geometry.shape(cache.kept), cache.geometry.dtype
    layers = []
    for name, (keys, values) in zip(names, cache.layers, strict=True):
        scheme = QUANTIZERS[name]
        layers.append(scheme.decode(*scheme.encode(keys, values), shape, dtype))
    return KVCache(tuple(layers), cache.positions, cache.length)


def probe(
    cache: KVCache,
    cost_of: Callable[[KVCache], float],
    threshold: float,
    low: str = "int4",
    higher: Sequence[str] = ("int8", "bf16"),
) -> Plan:
    """`mixed_int4`: four bits for all layers but those that a probe shows to need more (paper A's diagnosis).

    Each layer by itself is put into `low`. Where that costs more than `threshold`, the layer gets the first of `higher`
    that doesn't, else the last one.

    Args:
        cost_of: what answering from a cache costs, such as 1 - F1 over some questions, or a loss; called once for the
            cache as it is and once or more for each layer.
        threshold: the largest rise of the cost that is put up with, for one layer.
    """
    base = cost_of(cache)

    def cost_with(layer: int, name: str) -> float:
        alone = KVCache((cache.layers[layer],), cache.positions, cache.length)
        layers = (*cache.layers[:layer], quantized(alone, name).layers[0], *cache.layers[layer + 1 :])
        return cost_of(KVCache(layers, cache.positions, cache.length)) - base

    def choice(layer: int) -> str:
        *tried, last = (low, *higher)
        return next((name for name in tried if cost_with(layer, name) <= threshold), last)

    return tuple(choice(layer) for layer in range(len(cache.layers)))
