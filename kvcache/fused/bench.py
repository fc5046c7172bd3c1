"""The fused codec on a GPU against what the same GPU does at best: an eager copy, and its link to pinned memory."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from kvcache.cache import Geometry, KVCache
from kvcache.fused import codec
from kvcache.fused.sending import Export
from kvcache.quantizers import QUANTIZERS
from kvcache.wire import Decoder, encode

MODEL = bytes(16)
HEAD_DIM = 128
SIZES = [(28, 4, 170), (28, 4, 512), (28, 4, 2048), (48, 8, 4096)]  # layers, KV heads, positions: Qwen2.5 7B and 14B
NAMES = ("bf16", "int8", "int4", "int8_kivi", "int4_kivi")
KEPT = (0.25, 0.5, 0.75)
LINK_BYTES = 2**28
SOCKET_BYTES = 2**18  # as much as a receiver reads at once
QUEUED = 10  # launches timed together, so that the CPU's work for them isn't measured

Job = Callable[[], object]


@dataclass(frozen=True, slots=True)
class FusedSpeed:
    """One quantizer at one size.

    Attributes:
        cache_mb, wire_mb: 10 ** 6 bytes of bfloat16 cache, and of its payload.
        pack_of_copy, unpack_of_copy, gather_of_copy: time of an eager copy on the GPU with the same traffic (bytes read
            and written), divided by the kernels'; gathering packs 25, 50 and 75 % of the positions.
        pack_call_ms, unpack_call_ms: by the CPU's clock, until its result is known to be right.
        send_ms: from the call to the last byte in host memory, all checksums included; receive_ms: from pinned memory
            to the checked cache; pageable_ms: the same from pieces of 256 KiB of pageable memory.
        send_of_link, ...: the time of a pinned copy of so many bytes, divided by it.
        copy_gb_per_s: of the copy with the traffic of `pack`.
        to_host_gb_per_s, to_gpu_gb_per_s: the pinned link, by copies of 268 MB.
    """

    device: str
    quantizer: str
    layers: int
    shape: list[int]
    cache_mb: float
    wire_mb: float
    pack_of_copy: float
    unpack_of_copy: float
    gather_of_copy: list[float]
    pack_call_ms: float
    unpack_call_ms: float
    send_ms: float
    send_of_link: float
    receive_ms: float
    receive_of_link: float
    pageable_ms: float
    pageable_of_link: float
    copy_gb_per_s: float
    to_host_gb_per_s: float
    to_gpu_gb_per_s: float


def bench_fused(quick: bool = False) -> list[FusedSpeed]:
    """Kernels and wire format on the GPU, medians; turns of a kernel and of the copy alternate.

    Args:
        quick: two quantizers, and no cache above 117 MB.
    """
    link = _link()
    rows = []
    for layers, heads, positions in SIZES[:3] if quick else SIZES:
        geometry = Geometry(layers, heads, HEAD_DIM, torch.bfloat16)
        generator = torch.Generator("cuda").manual_seed(0)
        made = [
            torch.randn(geometry.shape(positions), generator=generator, device="cuda", dtype=torch.bfloat16)
            for _ in range(2 * layers)
        ]
        cache = KVCache.whole(tuple(zip(made[::2], made[1::2], strict=True)))
        rows += [_measure(cache, name, link, 5 if quick else 15) for name in (("int8", "int4") if quick else NAMES)]
    return rows


def _measure(cache: KVCache, name: str, link: tuple[float, float], turns: int) -> FusedSpeed:
    geometry, shape = cache.geometry, cache.geometry.shape(cache.kept)
    raw = b"".join(encode(cache, name, MODEL))
    pinned = torch.frombuffer(bytearray(raw), dtype=torch.uint8).pin_memory()
    pieces = [memoryview(raw)[begin : begin + SOCKET_BYTES] for begin in range(0, len(raw), SOCKET_BYTES)]
    calls: dict[str, Job] = {
        "pack": lambda: _pack(cache, name),
        "unpack": _unpacking(cache, name),
        "send": lambda: sum(map(len, encode(cache, name, MODEL))),
        "receive": lambda: _receive([pinned.numpy().data], geometry),
        "pageable": lambda: _receive(pieces, geometry),
    }
    ms = {job: median([_call_ms(call) for _ in range(turns + 3)][3:]) for job, call in calls.items()}
    of_copy, copy = _kernels(cache, name, turns)
    to_host, to_gpu = link
    mb = len(raw) / 1e6
    return FusedSpeed(
        device=torch.cuda.get_device_name(),
        quantizer=name,
        layers=geometry.layers,
        shape=list(shape),
        cache_mb=round(cache.nbytes / 1e6, 2),
        wire_mb=round(mb, 2),
        pack_of_copy=of_copy[0],
        unpack_of_copy=of_copy[1],
        gather_of_copy=of_copy[2:],
        pack_call_ms=round(ms["pack"], 4),
        unpack_call_ms=round(ms["unpack"], 4),
        send_ms=round(ms["send"], 3),
        send_of_link=round(mb / to_host / ms["send"], 3),
        receive_ms=round(ms["receive"], 3),
        receive_of_link=round(mb / to_gpu / ms["receive"], 3),
        pageable_ms=round(ms["pageable"], 3),
        pageable_of_link=round(mb / to_gpu / ms["pageable"], 3),
        copy_gb_per_s=round(copy, 1),
        to_host_gb_per_s=round(to_host, 2),
        to_gpu_gb_per_s=round(to_gpu, 2),
    )


def _pack(cache: KVCache, name: str) -> list[int]:
    packed = codec.pack(cache.layers, (QUANTIZERS[name].code,) * len(cache.layers))
    return Export(packed.results).numbers()


def _unpacking(cache: KVCache, name: str) -> Job:
    packed = codec.pack(cache.layers, (QUANTIZERS[name].code,) * len(cache.layers))
    geometry, shape = cache.geometry, cache.geometry.shape(cache.kept)

    def unpack() -> list[int]:
        codec.unpack(packed.layout, packed.image, packed.results, geometry.dtype, shape)
        return Export(packed.results).numbers()

    return unpack


def _receive(pieces: Sequence[memoryview], geometry: Geometry) -> KVCache:
    decoder = Decoder({MODEL: geometry}, device="cuda")
    for piece in pieces:
        decoder.feed(piece)
    cache = decoder.finish()
    torch.cuda.synchronize()
    return cache


def _kernels(cache: KVCache, name: str, turns: int) -> tuple[list[float], float]:
    """Shares of the copy of pack, unpack and gather-and-pack; and the copy's GB/s, read and written."""
    codes, shape = (QUANTIZERS[name].code,) * len(cache.layers), cache.geometry.shape(cache.kept)
    packed = codec.pack(cache.layers, codes)
    unpacked = codec.unpack(packed.layout, packed.image, packed.results, cache.geometry.dtype, shape)
    whole = cache.nbytes + packed.layout.image_bytes
    jobs: list[tuple[Job, int]] = [(packed.launch, whole), (unpacked.launch, whole)]
    for share in KEPT:
        rows = torch.randperm(cache.kept, generator=torch.Generator().manual_seed(1))[: int(share * cache.kept)]
        some = codec.pack(cache.layers, codes, rows.sort().values)
        jobs.append((some.launch, cache.geometry.nbytes(len(rows)) + some.layout.image_bytes))
    source = torch.empty(max(size for _, size in jobs), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    taken: list[list[float]] = [[] for _ in jobs]
    copied: list[list[float]] = [[] for _ in jobs]
    for turn in range(-1, turns):
        for i, (launch, size) in enumerate(jobs):
            here, there = source[: size // 2], target[: size // 2]
            times = _queued_ms(lambda here=here, there=there: there.copy_(here)), _queued_ms(launch)  # type: ignore[misc]
            if turn >= 0:
                copied[i].append(times[0])
                taken[i].append(times[1])
    shares = [round(median(copy) / median(kernel), 3) for copy, kernel in zip(copied, taken, strict=True)]
    return shares, whole / median(copied[0]) / 1e6


def _link() -> tuple[float, float]:
    """GB/s from the GPU to pinned memory, and back."""
    here = torch.empty(LINK_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(LINK_BYTES, dtype=torch.uint8, device="cuda")

    def speed(target: Tensor, source: Tensor) -> float:
        return (
            LINK_BYTES / 1e6 / median(_queued_ms(lambda: target.copy_(source, non_blocking=True), 2) for _ in range(5))
        )

    return speed(here, there), speed(there, here)


def _queued_ms(launch: Job, count: int = QUEUED) -> float:
    """Time of one launch of many that wait in the GPU's queue, behind copies during which the CPU queues them."""
    front = torch.empty(2**29, dtype=torch.uint8, device="cuda")
    back = torch.empty_like(front)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    for _ in range(4):
        back.copy_(front)
    begin.record()
    for _ in range(count):
        launch()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / count


def _call_ms(job: Job) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    job()
    return 1e3 * (time.perf_counter() - began)


def fused_table(rows: Sequence[FusedSpeed], machine: str) -> Table:
    """The result of `bench_fused` on a machine as a table."""
    limits = ""
    if rows:
        limits = (
            f"\npinned link {rows[0].to_host_gb_per_s:.1f} GB/s to the host, {rows[0].to_gpu_gb_per_s:.1f} to the GPU"
        )
    title = "fused kernels: % of an eager copy with the same traffic; send and receive: ms, % of the pinned link"
    table = Table(title=f"{title}{limits}\ntorch {torch.__version__}, {machine}", title_justify="left", box=SIMPLE_HEAD)
    for name in ("quantizer", "cache"):
        table.add_column(name)
    kept = [f"gather {share:.0%}" for share in KEPT]
    for name in ("MB", "copy GB/s", "pack", "unpack", *kept, "calls ms", "wire MB", "send", "receive", "pageable"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.quantizer,
            f"{row.layers}x{row.shape[0]}x{row.shape[1]}",
            f"{row.cache_mb:.0f}",
            f"{row.copy_gb_per_s:,.0f}",
            f"{row.pack_of_copy:.0%}",
            f"{row.unpack_of_copy:.0%}",
            *(f"{share:.0%}" for share in row.gather_of_copy),
            f"{row.pack_call_ms:.2f} {row.unpack_call_ms:.2f}",
            f"{row.wire_mb:.1f}",
            f"{row.send_ms:.2f} {row.send_of_link:.0%}",
            f"{row.receive_ms:.2f} {row.receive_of_link:.0%}",
            f"{row.pageable_ms:.2f} {row.pageable_of_link:.0%}",
        )
    return table
