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


BITS = {  # of a key and of a value, without scales
    **{"int4": (4, 4), "int4_kivi": (4, 4), "int4_hadamard": (4, 4), "k8v4": (8, 4)},
    **{"int8": (8, 8), "k16v4": (16, 4), "bf16": (16, 16)},
}


def joint_plan(
    layers: int,
    cost_of: Callable[[Plan], float],
    threshold: float,
    bases: Sequence[str] = ("int4", "int4_kivi", "int4_hadamard"),
    upgrades: Sequence[str] = ("k8v4", "int8", "bf16"),
) -> Plan:
    """A mixed plan by joint harm: all layers at four bits, then upgrades where they help most for their bits.

    Every layer's upgrades are judged with all other layers at four bits, since harms add up that each layer alone
    doesn't show; keys and values apart, by schemes that treat them differently. The shortest prefix of upgrades, by
    gain a bit, with which the whole plan's cost rises by at most `threshold` is found by bisection.

    Args:
        cost_of: the cost of answering from a cache of that plan; called about layers x upgrades times.
        threshold: the largest accepted rise of the cost by the whole plan, over no quantization.

    Returns:
        The plan; with every upgrade, if that is still too costly.
    """
    free = cost_of(("bf16",) * layers)
    by_base = {name: cost_of((name,) * layers) for name in bases}
    base = min(bases, key=lambda name: by_base[name])
    lowest: Plan = (base,) * layers
    if by_base[base] - free <= threshold:
        return lowest
    worth = []
    for layer in range(layers):
        for name in upgrades:
            gain = by_base[base] - cost_of((*lowest[:layer], name, *lowest[layer + 1 :]))
            worth.append((gain / (sum(BITS[name]) - sum(BITS[base])), layer, name))
    order = [(layer, name) for _, layer, name in sorted(worth, key=lambda one: -one[0])]

    def with_first(count: int) -> Plan:
        plan = list(lowest)
        for layer, name in order[:count]:
            if sum(BITS[name]) > sum(BITS[plan[layer]]):
                plan[layer] = name
        return tuple(plan)

    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if cost_of(with_first(middle)) - free <= threshold:
            high = middle
        else:
            low = middle + 1
    return with_first(low)
