"""Every quantizer comes back within its bound, from exactly the bytes it says, and refuses what it can't hold."""

import math
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvcache.cache import KVCache
from kvcache.plans import plan_of, probe, quantized
from kvcache.quantizers import CODES, QUANTIZERS, QuantizeError, Quantizer
from kvcache.quantizers.delta import Delta
from kvcache.quantizers.rotated import Rotated
from kvcache.quantizers.symmetric import Symmetric
from tests.kvcache.tensors import normal, small_cache, tensors

BY_PART = {
    f"{name}-{part}": getattr(scheme, part) for name, scheme in QUANTIZERS.items() for part in ("keys", "values")
}
all_quantizers = pytest.mark.parametrize("quantizer", BY_PART.values(), ids=BY_PART)


def back(quantizer: Quantizer, x: Tensor) -> Tensor:
    return quantizer.decode(quantizer.encode(x), tuple(x.shape), x.dtype)


@all_quantizers
@settings(max_examples=80, deadline=None)
@given(x=tensors())
def test_round_trip_is_within_the_bound(quantizer: Quantizer, x: Tensor) -> None:
    buffer = quantizer.encode(x)
    shape = tuple(x.shape)
    assert buffer.dtype == torch.uint8 and buffer.dim() == 1
    if quantizer.size(shape) is None:
        assert len(buffer) <= quantizer.max_size(shape)
    else:
        assert len(buffer) == quantizer.size(shape) == quantizer.max_size(shape)
    decoded = quantizer.decode(buffer, shape, x.dtype)
    assert (decoded.shape, decoded.dtype) == (x.shape, x.dtype)
    assert bool(((decoded.float() - x.float()).abs() <= quantizer.bound(x)).all())
    assert not decoded[x == 0].any() or isinstance(quantizer, Delta | Rotated), "zeros stay zeros"


@all_quantizers
def test_bounds_are_worth_something(quantizer: Quantizer) -> None:
    """Half a step at most, of 1/7 or 1/127 of the largest value; differences can be twice as large as values."""
    x = normal((2, 130, 64), torch.bfloat16)
    worst = float((quantizer.bound(x).expand(x.shape) / x.float().abs().max()).max())
    steps = {4: 1 / 7, 8: 1 / 127}[quantizer.bits] if isinstance(quantizer, Symmetric | Delta) else 0
    if isinstance(quantizer, Rotated):  # errors of all channels may add up
        steps = 2 / 7
    assert worst < (steps if isinstance(quantizer, Delta) else steps / 2) + 0.02


@all_quantizers
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(quantizer: Quantizer, wrong: float) -> None:
    for place in ((0, 0, 0), (1, 69, 7), (0, 5, 3)):
        x = normal((2, 70, 8), torch.bfloat16)
        x[place] = wrong
        with pytest.raises(QuantizeError, match=r"finite|can't be quantized"):
            quantizer.encode(x)


@all_quantizers
def test_views_quantize_as_their_copies_do(quantizer: Quantizer) -> None:
    """As slices of a longer, preallocated cache are."""
    x = normal((2, 200, 16), torch.float16)[:, 3:131, ::2]
    assert torch.equal(quantizer.encode(x), quantizer.encode(x.contiguous()))


@all_quantizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_largest_values_stay_finite(quantizer: Quantizer, dtype: torch.dtype) -> None:
    x = torch.full((1, 10, 4), 65504.0).to(dtype)
    assert bool(back(quantizer, x).isfinite().all())


@all_quantizers
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_bytes_that_are_no_encoding(quantizer: Quantizer, data: st.DataObject) -> None:
    """Another length is refused; other bytes are refused, or are some values of the right shape."""
    shape = (2, 12, 6)
    encoded = bytearray(quantizer.encode(normal(shape, torch.bfloat16)).tolist())
    for length in (len(encoded) - 1, len(encoded) + 1, 0):
        with pytest.raises(QuantizeError):
            quantizer.decode(torch.tensor((encoded + b"\0")[:length], dtype=torch.uint8), shape, torch.bfloat16)
    for _ in range(data.draw(st.integers(1, 8))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = quantizer.decode(torch.tensor(encoded, dtype=torch.uint8), shape, torch.bfloat16)
    except QuantizeError:
        return
    assert decoded.shape == shape


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(2, 5, 8), (1, 3, 7), (3, 1, 1)])
def test_symmetric_is_its_definition(bits: int, shape: tuple[int, int, int]) -> None:
    x = normal(shape, torch.float32)
    qmax = {4: 7, 8: 127}[bits]
    scales = (x.abs().amax(-1, keepdim=True) / qmax).half().float()
    codes = torch.where(scales > 0, x / scales, 0).round()
    assert codes.abs().max() == qmax
    torch.testing.assert_close(back(Symmetric(bits), x), codes * scales)
    buffer = Symmetric(bits).encode(x)
    stored = buffer[2 * shape[0] * shape[1] :].view(*shape[:2], -1)
    if bits == 8:
        assert torch.equal(stored.view(torch.int8), codes.to(torch.int8))
    else:
        half = (shape[2] + 1) // 2
        assert torch.equal((stored & 15).int() - 8, codes[..., :half].int())
        assert torch.equal((stored >> 4).int()[..., : shape[2] - half] - 8, codes[..., half:].int())


def test_groups_of_tokens_have_a_scale_a_channel() -> None:
    x = normal((2, 10, 6), torch.float32)
    by_group = back(Symmetric(8, group=4), x)
    for begin in (0, 4, 8):
        group = x[:, begin : begin + 4]
        as_tokens = back(Symmetric(8), group.transpose(1, 2).contiguous()).transpose(1, 2)
        torch.testing.assert_close(by_group[:, begin : begin + 4], as_tokens)


def test_kivis_axes_serve_keys_with_large_channels() -> None:
    x = normal((4, 256, 64), torch.bfloat16)
    error = {name: (back(QUANTIZERS[name].keys, x) - x)[..., 1:].float().pow(2).mean() for name in QUANTIZERS}
    assert error["int4_kivi"] < error["int4"] / 4 and error["int8_kivi"] < error["int8"] / 4


@pytest.mark.parametrize(
    ("name", "bits"), [("bf16", 16), ("int8", 8.125), ("int4", 4.125), ("int8_kivi", 8.1875), ("int4_kivi", 4.1875)]
)
def test_bits_a_value_are_packed_bits_and_scales(name: str, bits: float) -> None:
    shape = (4, 1024, 128)
    x = normal(shape, torch.bfloat16)
    keys, values = QUANTIZERS[name].encode(x, x)
    assert 8 * (len(keys) + len(values)) / (2 * x.numel()) == bits


def test_delta_pays_where_neighbours_are_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(2, 400, 32, generator=generator)
    alike = (torch.randn(2, 1, 32, generator=generator) * 20 + 0.1 * steps).bfloat16()
    error = {name: (back(QUANTIZERS[name].values, alike) - alike).float().pow(2).mean() for name in ("delta", "int4")}
    assert error["delta"] < error["int4"] / 4
    repeated = alike[:, :1].expand(2, 400, 32)
    delta = Delta()
    assert len(delta.encode(repeated)) < delta.max_size((2, 400, 32)) / 4, "what compresses is deflated"


def test_a_deflated_bomb_is_refused_at_its_size() -> None:
    shape = (1, 20, 4)
    anchors = Symmetric(8).encode(torch.zeros(1, 2, 4))
    bomb = zlib.compress(bytes(200_000_000), 9)
    buffer = torch.tensor([*anchors.tolist(), 1, *bomb[:100_000]], dtype=torch.uint8)
    with pytest.raises(QuantizeError, match="inflate"):
        Delta().decode(buffer, shape, torch.bfloat16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@all_quantizers
def test_on_a_gpu(quantizer: Quantizer) -> None:
    """Bytes packed there are good here, and the other way round."""
    for n in (5, 130, 4096):
        x = normal((3, n, 64), torch.bfloat16)
        shape, bound = tuple(x.shape), quantizer.bound(x)
        there = quantizer.encode(x.cuda())
        assert there.is_cuda
        for decoded in (
            quantizer.decode(there, shape, x.dtype).cpu(),
            quantizer.decode(there.cpu(), shape, x.dtype),
            quantizer.decode(quantizer.encode(x).cuda(), shape, x.dtype).cpu(),
        ):
            assert bool(((decoded.float() - x.float()).abs() <= 1.01 * bound).all())


def test_codes_on_the_wire_are_unique() -> None:
    assert len(CODES) == len(QUANTIZERS)
    assert {name: scheme.code for name, scheme in QUANTIZERS.items()} == {
        "bf16": 0,
        "int8": 1,
        "int4": 2,
        "int8_kivi": 3,
        "int4_kivi": 4,
        "delta": 5,
        "k8v4": 6,
        "k16v4": 7,
        "int4_hadamard": 8,
    }, "they are in docs/wire-format.md"


def test_the_probe_protects_what_four_bits_hurt() -> None:
    cache = small_cache()
    worth = {0: 100.0, 1: 1.0, 2: 10.0}

    def cost_of(changed: KVCache) -> float:
        """Each layer's mean error in the keys, by its worth; 4 bits move keys by about 0.5 here, 8 by 0.03."""
        pairs = enumerate(zip(cache.layers, changed.layers, strict=True))
        return 5 + sum(worth[i] * float((old[0] - new[0]).float().abs().mean()) for i, (old, new) in pairs)

    rises = [cost_of(_only(cache, i, "int4")) - 5 for i in range(3)]
    eights = [cost_of(_only(cache, i, "int8")) - 5 for i in range(3)]
    threshold = (rises[1] + min(rises[2], eights[0])) / 2
    assert rises[1] < threshold < min(rises[2], eights[0]) and eights[2] < threshold, "the case is what it should be"
    plan = probe(cache, cost_of, threshold)
    assert plan == ("bf16", "int4", "int8")
    mixed = quantized(cache, plan)
    assert torch.equal(mixed.layers[0][0], cache.layers[0][0])
    assert not torch.equal(mixed.layers[1][0], cache.layers[1][0])
    assert probe(cache, cost_of, math.inf) == ("int4",) * 3
    assert probe(cache, cost_of, -1.0) == ("bf16",) * 3


def _only(cache: KVCache, layer: int, name: str) -> KVCache:
    return quantized(cache, tuple(name if i == layer else "bf16" for i in range(len(cache.layers))))


def test_plans_say_what_is_wrong() -> None:
    assert plan_of("int8", 2) == ("int8", "int8")
    with pytest.raises(ValueError, match="no quantizer int3; there are bf16, int8"):
        plan_of(("int8", "int3"), 2)
    with pytest.raises(ValueError, match="3 layers, where the cache has 2"):
        plan_of(("int8",) * 3, 2)
