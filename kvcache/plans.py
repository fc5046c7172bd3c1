"""Plans: the quantizer of each layer of a cache, and the probe that finds layers sensitive to four bits."""

from collections.abc import Callable, Sequence

from kvcache.cache import KVCache
from kvcache.quantizers import QUANTIZERS

Plan = tuple[str, ...]
"""The quantizer of every layer, by name."""


def plan_of(plan: str | Sequence[str], layers: int) -> Plan:
    """Normalize a plan for `layers` layers, given as one name for all or one name each.

    Raises:
        ValueError: an unknown name (the message lists the known ones), or a plan of another length.
    """
    names = (plan,) * layers if isinstance(plan, str) else tuple(plan)
    if unknown := set(names) - set(QUANTIZERS):
        raise ValueError(f"no quantizer {', '.join(sorted(unknown))}; there are {', '.join(QUANTIZERS)}")
    if len(names) != layers:
        raise ValueError(f"a plan for {len(names)} layers, where the cache has {layers}")
    return names


def quantized(cache: KVCache, plan: str | Sequence[str]) -> KVCache:
    """The cache as its receiver decodes it: every layer encoded and decoded."""
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
    """The plan of `mixed_int4`: four bits for all layers except the sensitive ones (paper A's diagnosis).

    Each layer alone is quantized by `low`. If that costs more than `threshold`, the layer gets the first of `higher`
    that doesn't, else the last one.

    Args:
        cost_of: the cost of answering from a cache, such as 1 - F1 over some questions, or a loss; called once for the
            unquantized cache and at least once for each layer.
        threshold: the largest accepted increase of the cost by one layer.
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
