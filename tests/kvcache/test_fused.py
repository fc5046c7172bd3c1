"""Fused kernels give the bytes of the quantizers: by Triton's interpreter without a GPU, else on the GPU."""

import io
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from kvcache import wire
from kvcache.cache import DTYPES, Geometry, KVCache
from kvcache.errors import WireError
from kvcache.quantizers import QUANTIZERS, QuantizeError
from kvcache.quantizers.rotated import Rotated
from kvcache.selection.rows import tail_probabilities
from tests.kvcache.tensors import normal

if find_spec("triton") is None:
    pytest.skip("Triton is not installed: pip install triton", allow_module_level=True)

MODEL = bytes(range(16))
GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if GPU else "cpu"
Layers = tuple[tuple[Tensor, Tensor], ...]
# A rotation is a product of matrices, of which devices round the sums differently.
SAME_BYTES = [name for name, scheme in QUANTIZERS.items() if not isinstance(scheme.keys, Rotated)]
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU")


@pytest.fixture(scope="module")
def codec() -> Iterator[ModuleType]:
    """The fused codec; interpreted, with programs as small as the tests' caches, as it is slow."""
    if not GPU and not INTERPRETED:
        pytest.skip("runs in `test_by_the_interpreter`")
    from kvcache.fused import codec

    with pytest.MonkeyPatch.context() as patch:
        if not GPU:
            for name, value in (("LANES", 16), ("STEPS", 2), ("CHUNK_BYTES", 128)):
                patch.setattr(codec, name, value)
            patch.setattr(codec, "VALUES", {"pack": 1024, "unpack": 1024})
        yield codec


def _let_the_interpreter_count(patch: pytest.MonkeyPatch) -> None:
    """NumPy from 2.4 on doesn't take arrays of one element for numbers, which Triton 3.6 does in `range`."""
    from triton.runtime import interpreter

    patched = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patched(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    patch.setattr(interpreter, "_patch_lang_tensor", patch_tensor)


@pytest.fixture(scope="module")
def scoring(codec: ModuleType) -> Iterator[ModuleType]:
    """The fused scores, likewise."""
    from kvcache.fused import scoring

    with pytest.MonkeyPatch.context() as patch:
        if not GPU:
            few, many = scoring.Tile(32, 16, 4), scoring.Tile(16, 32, 4)
            for name, value in (("FEW", few), ("MANY", many), ("SPLIT_KEYS", 32), ("PROGRAMS", 8)):
                patch.setattr(scoring, name, value)
            _let_the_interpreter_count(patch)
        yield scoring


@pytest.mark.skipif(GPU or INTERPRETED, reason="the other tests run here")
def test_by_the_interpreter() -> None:
    """In a process of its own: it must be chosen before Triton is first imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


def awkward(shape: tuple[int, int, int], dtype: torch.dtype, seed: int) -> Tensor:
    """Values of all magnitudes: subnormal ones, zeros, positions whose scale is subnormal, a large channel."""
    x = normal(shape, torch.float32, seed)
    x *= torch.exp(3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    x[:, 2], x[:, 3, 1], x[0, 4, 0] = 1e-40, 1e-7, -3e4
    return x.clamp(-3e4, 3e4).to(dtype)


def layers_of(shape: tuple[int, int, int], dtype: torch.dtype, count: int) -> Layers:
    """Keys that are contiguous; values that are a part of longer ones, in another order."""
    heads, n, head_dim = shape

    def values(seed: int) -> Tensor:
        longer = torch.zeros(n + 9, heads, head_dim, dtype=dtype).transpose(0, 1)
        longer[:, 4 : n + 4] = awkward(shape, dtype, seed)
        return longer[:, 4 : n + 4]

    return tuple((awkward(shape, dtype, 2 * i), values(2 * i + 1)) for i in range(count))


def same_bits(found: Tensor, expected: Tensor) -> bool:
    return torch.equal(found.cpu().contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


@pytest.mark.parametrize(
    ("names", "dtype", "shape", "gathered"),
    [
        (("int8", "int4"), torch.bfloat16, (2, 20, 96), True),
        (("int4", "bf16", "int8"), torch.float16, (3, 9, 64), False),
        (("bf16", "int8"), torch.float32, (1, 7, 256), True),
        (("int4_kivi", "int8_kivi"), torch.float16, (2, 70, 32), False),
        (("int8_kivi", "bf16"), torch.bfloat16, (1, 66, 16), True),
    ],
)
def test_kernels_write_and_read_the_bytes_of_the_quantizers(
    codec: ModuleType, names: tuple[str, ...], dtype: torch.dtype, shape: tuple[int, int, int], gathered: bool
) -> None:
    layers = layers_of(shape, dtype, len(names))
    rows = torch.arange(shape[1])[:: 3 if shape[1] < 60 else 1][1:] if gathered else None
    kept = layers if rows is None else tuple((keys[:, rows], values[:, rows]) for keys, values in layers)
    there = tuple((keys.to(DEVICE), values.to(DEVICE)) for keys, values in layers)
    packed = codec.pack(there, tuple(QUANTIZERS[name].code for name in names), rows)
    expected = [QUANTIZERS[name].encode(*layer) for name, layer in zip(names, kept, strict=True)]
    assert not packed.results.any()
    for i, parts in enumerate(expected):
        begin = packed.layout.offsets[i]
        assert torch.equal(packed.image[begin : begin + packed.layout.nbytes[i]].cpu(), torch.cat(parts)), names[i]
    shape = tuple(kept[0][0].shape)  # type: ignore[assignment]
    unpacked = codec.unpack(packed.layout, packed.image, packed.results, dtype, shape).tensors
    assert not packed.results.any()
    for i, (name, parts) in enumerate(zip(names, expected, strict=True)):
        if dtype == torch.bfloat16 and name != "bf16" and not GPU:
            continue  # the interpreter truncates to bfloat16
        keys, values = QUANTIZERS[name].decode(*parts, shape, dtype)
        assert same_bits(unpacked[2 * i], keys) and same_bits(unpacked[2 * i + 1], values), name


@pytest.mark.parametrize(("name", "wrong"), [("int8", torch.nan), ("int4_kivi", torch.inf), ("bf16", -torch.inf)])
def test_what_cannot_be_packed_or_unpacked_is_flagged(codec: ModuleType, name: str, wrong: float) -> None:
    shape = (2, 5, 16)
    layers = layers_of(shape, torch.float32, 2)
    there = tuple((keys.to(DEVICE), values.to(DEVICE)) for keys, values in layers)
    codes = (QUANTIZERS[name].code,) * 2
    clean = codec.pack(there, codes)
    there[1][0][1, 3, 9] = wrong
    assert codec.pack(there, codes).results.tolist() == [0, 0, 1, 0, 0, 0]
    begin = clean.layout.offsets[1]
    for bits, refused in ((0x7C00, True), (0x8001, True), (0x8000, False)):  # scales: infinity, below 0, -0
        flags = torch.zeros(4, dtype=torch.int32, device=DEVICE)
        clean.image[begin : begin + 2] = torch.tensor([bits & 255, bits >> 8])
        codec.unpack(clean.layout, clean.image, flags, torch.float32, shape)
        assert flags.tolist() == [0, 0, int(refused and name != "bf16"), 0]


@pytest.mark.parametrize("shape", [(1, 1, 16), (2, 3, 16)])
def test_checksums_are_zlibs(codec: ModuleType, shape: tuple[int, int, int]) -> None:
    layers = tuple(
        (normal(shape, torch.float16, i).to(DEVICE), normal(shape, torch.float16, i + 7).to(DEVICE)) for i in (0, 1)
    )
    packed = codec.pack(layers, (QUANTIZERS["int8_kivi"].code, QUANTIZERS["int4"].code))
    packed.checksum()
    for i, begin in enumerate(packed.layout.offsets):
        section = packed.image[begin : begin + packed.layout.nbytes[i]].cpu().numpy()
        assert int(packed.results[4 + i]) & 0xFFFFFFFF == zlib.crc32(section)


def test_only_suited_schemes_are_fused(codec: ModuleType) -> None:
    assert [name for name, scheme in QUANTIZERS.items() if not codec.suits(scheme, 128)] == ["delta", "int4_hadamard"]
    assert not codec.suits(QUANTIZERS["int8"], 7) and not codec.suits(QUANTIZERS["int8"], 512)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "m", "n", "dtype"),
    [
        (6, 2, 32, 11, 50, torch.float32),
        (2, 1, 24, 40, 40, torch.float32),  # all rows
        (4, 1, 16, 1, 33, torch.float16),
        (14, 2, 128, 32, 700, torch.bfloat16),
        (8, 2, 96, 900, 900, torch.bfloat16),
    ],
)
def test_column_sums_are_those_of_the_rows(
    scoring: ModuleType, heads: int, kv_heads: int, head_dim: int, m: int, n: int, dtype: torch.dtype
) -> None:
    if not GPU and n > 100:
        pytest.skip("too large for the interpreter, which truncates to bfloat16 besides")
    source = torch.Generator().manual_seed(n)
    queries = [torch.randn(1, m + 3, heads, head_dim, generator=source).to(dtype).transpose(1, 2) for _ in range(2)]
    keys = [torch.randn(1, kv_heads, n + 5, head_dim, generator=source).to(dtype)[:, :, 2 : n + 2] for _ in range(2)]
    scale, first_rows = head_dim**-0.5, [n - m // 2 - 1, n - m]
    there = [[one.to(DEVICE) for one in some] for some in (queries, keys)]
    found = scoring.column_sums(*there, m, scale, first_rows)
    for sums, first_row in zip(found, first_rows, strict=True):
        expected = torch.zeros(n)
        for query, key in zip(queries, keys, strict=True):
            rows = tail_probabilities(query[0, :, 3:].float(), key[0].float(), scale, n - m)
            expected += rows[:, first_row - n + m :].sum((0, 1))
        torch.testing.assert_close(sums.cpu(), expected, atol=1e-4, rtol=1e-4 if dtype == torch.float32 else 4e-3)


def gpu_cache(
    dtype: torch.dtype = torch.bfloat16, n: int = 517, heads: int = 4, layers: int = 3
) -> tuple[KVCache, KVCache]:
    """The same cache on the CPU and on the GPU."""
    cache = KVCache.whole(layers_of((heads, n, 64), dtype, layers))
    return cache, cache.to("cuda")


def frame(cache: KVCache, plan: Any, keep: Tensor | None = None) -> bytearray:
    return bytearray(b"".join(wire.encode(cache, plan, MODEL, keep)))


def received(raw: Any, geometry: Geometry, piece: int) -> KVCache:
    decoder = wire.Decoder({MODEL: geometry}, device="cuda")
    for begin in range(0, len(raw), piece):
        decoder.feed(memoryview(raw)[begin : begin + piece])
    return decoder.finish()


@needs_gpu
@pytest.mark.parametrize("plan", [*SAME_BYTES, ("int4", "int8", "bf16"), ("delta", "int8", "int4_kivi")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_sends_and_receives_the_cpus_bytes(plan: Any, dtype: torch.dtype) -> None:
    for heads, n in ((4, 517), (1, 1), (3, 64)):
        if n > 4:
            here, there = gpu_cache(dtype, n, heads)
        else:
            here = KVCache.whole(((torch.ones(heads, n, 64, dtype=dtype),) * 2,) * 3)
            there = here.to("cuda")
        keep = torch.arange(1, n, 2)
        for kept in (None, keep):
            raw = frame(here if kept is None else here.keep(kept), plan)
            assert frame(there, plan, kept) == raw
            decoder = wire.Decoder({MODEL: here.geometry})
            decoder.feed(raw)
            expected, found = decoder.finish(), received(raw, here.geometry, 99_991)
            assert torch.equal(found.positions, expected.positions) and found.length == expected.length
            for one, other in zip(found.layers, expected.layers, strict=True):
                assert same_bits(one[0], other[0]) and same_bits(one[1], other[1])


@needs_gpu
@pytest.mark.parametrize("heads", [2, 4, 8])
def test_kernels_of_the_first_length_serve_the_others(heads: int) -> None:
    """So that a warm-up with any prompt leaves nothing to compile."""
    from kvcache.fused import launching

    compiled = []
    for n in (320, 321, 1030, 4097):
        cache = KVCache.whole(layers_of((heads, n, 128), torch.bfloat16, 3)).to("cuda")
        for plan in ("int8", "int4_kivi", ("int4", "int8", "bf16")):
            for keep in (None, torch.arange(0, n, 3)):
                received(frame(cache, plan, keep), cache.geometry, 2**18)
        compiled.append(len(launching._compiled))
    assert compiled[1:] == compiled[:-1]


@needs_gpu
def test_the_bench() -> None:
    from kvcache.fused.bench import bench_fused

    rows = bench_fused(quick=True)
    json.dumps([asdict(row) for row in rows], allow_nan=False)
    assert {row.quantizer for row in rows} == {"int8", "int4"}
    assert all(0 < row.send_of_link < 1.1 and 0 < row.receive_of_link < 1.1 for row in rows)


def test_the_benchs_table(codec: ModuleType) -> None:
    from kvcache.fused.bench import FusedSpeed, fused_table

    row = FusedSpeed("a GPU", "int8", 28, [4, 512, 128], 29.36, 14.91, 0.97, 0.89, [0.81, 0.85, 0.86], 0.12, 0.1,
                     0.5, 0.54, 0.6, 0.45, 5.1, 0.053, 3787.1, 55.3, 55.4)  # fmt: skip
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(fused_table([row], "this machine"))
    text = console.export_text()
    for shown in ("28x4x512", "3,787", "97%", "81%", "0.12 0.10", "0.50 54%", "0.60 45%", "this machine", "55.3 GB/s"):
        assert shown in text


@needs_gpu
def test_pieces_in_pinned_memory_are_received_where_they_are() -> None:
    here, there = gpu_cache(n=4000, layers=12)  # more than a slice of sections
    raw = frame(there, "int8")
    pinned = torch.empty(len(raw), dtype=torch.uint8, pin_memory=True)
    pinned.copy_(torch.frombuffer(raw, dtype=torch.uint8))
    expected = received(raw, here.geometry, 2**20)
    for piece in (len(raw), len(raw) - 5, 3 * 2**20 + 1):
        decoder = wire.Decoder({MODEL: here.geometry}, device="cuda")
        for begin in range(0, len(raw), piece):
            part = pinned[begin : begin + piece].clone().pin_memory()
            decoder.feed(memoryview(part.numpy()))
            part.zero_()  # as the next read does to a receiver's buffer
        for one, other in zip(decoder.finish().layers, expected.layers, strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@needs_gpu
def test_a_flipped_bit_is_always_found() -> None:
    here, there = gpu_cache(n=70)
    raw = frame(there, ("int4", "int8", "bf16"))
    for at in range(wire.HEADER_BYTES, len(raw), 101):
        raw[at] ^= 1 << at % 8
        with pytest.raises(WireError) as error:
            received(raw, here.geometry, len(raw))
        assert error.value.code in ("checksum", "bad_layer")
        raw[at] ^= 1 << at % 8
    received(raw, here.geometry, len(raw))


@needs_gpu
def test_a_gpu_refuses_by_the_same_names() -> None:
    here, there = gpu_cache(n=70)
    raw = frame(there, "int8")
    for wrong, code in (
        (raw[:-1], "truncated"),
        (raw + b"\0", "trailing"),
        (raw[: wire.HEADER_BYTES + 3], "truncated"),
    ):
        with pytest.raises(WireError) as error:
            received(wrong, here.geometry, 1000)
        assert error.value.code == code
    there.layers[1][1][0, 5, 0] = torch.nan
    with pytest.raises(QuantizeError, match="can't be quantized"):
        frame(there, "int8")
