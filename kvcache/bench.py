"""The speed of packing and unpacking caches on this machine, relative to a memory copy in the same run."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from kvcache.cache import Geometry, KVCache
from kvcache.quantizers import QUANTIZERS, Scheme
from kvcache.wire import Decoder, encode

MODEL = bytes(16)
JOBS = ("pack", "unpack", "send", "receive")
SIZES = {"cpu": [(8, 4, 2048)], "cuda": [(8, 4, 4096), (2, 8, 131_072)]}  # layers, heads, positions
SLOW = "delta"  # its entropy coder is zlib on one CPU core

Job = Callable[[], None]


@dataclass(frozen=True, slots=True)
class CodecSpeed:
    """One quantizer's speeds in GB/s (10 ** 9 bytes) of bfloat16 cache; `shape` is that of a layer's keys."""

    device: str
    quantizer: str
    layers: int
    shape: list[int]
    bits_per_value: float
    pack_gb_per_s: float
    unpack_gb_per_s: float
    send_gb_per_s: float
    receive_gb_per_s: float
    copy_gb_per_s: float
    slower_of_copy: float


def bench_codec(quick: bool = False, device: str | None = None) -> list[CodecSpeed]:
    """Packing and unpacking speed per quantizer.

    `pack` and `unpack` measure the quantizer alone; `send` and `receive` the wire format with its checksums, to and
    from host memory. `copy` counts memory traffic, read and written: twice the bytes copied.

    The cache is larger than the CPU's private caches, and every turn processes all of it. Turns of the copy and of all
    quantizers alternate, and medians are reported. The CPU uses one thread. On a GPU, quantizers are measured with
    layers of usual size (bound by kernel launches) and with huge ones (bound by memory).

    Args:
        quick: take seconds instead of half a minute.
        device: `cpu` or `cuda`; None: both, if there is a GPU.
    """
    devices = [device] if device else ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for name in devices for size in SIZES[name] for row in _measure(name, size, quick)]
    finally:
        torch.set_num_threads(threads)


def _measure(device: str, size: tuple[int, int, int], quick: bool) -> list[CodecSpeed]:
    """A row for each quantizer."""
    layers, heads, positions = size
    geometry = Geometry(2 if quick else layers, heads, 128, torch.bfloat16)
    generator = torch.Generator(device).manual_seed(0)

    def values() -> Tensor:
        return torch.randn(geometry.shape(positions), generator=generator, device=device, dtype=torch.bfloat16)

    cache = KVCache.whole(tuple((values(), values()) for _ in range(geometry.layers)))
    jobs = {name: _jobs(cache, scheme) for name, scheme in QUANTIZERS.items() if device == "cpu" or name != SLOW}
    copies, seconds = _take_turns(_copy_of(cache), jobs, device, 3 if quick else 7)
    copy = 2 * cache.nbytes / statistics.median(copies) / 1e9
    rows = []
    for name, times in seconds.items():
        speeds = {job: cache.nbytes / statistics.median(taken) / 1e9 for job, taken in times.items()}
        packed = sum(len(part) for layer in _packed(cache, QUANTIZERS[name]) for part in layer)
        rows.append(
            CodecSpeed(
                device=device,
                quantizer=name,
                layers=geometry.layers,
                shape=list(geometry.shape(positions)),
                bits_per_value=round(16 * packed / cache.nbytes, 4),
                pack_gb_per_s=round(speeds["pack"], 3),
                unpack_gb_per_s=round(speeds["unpack"], 3),
                send_gb_per_s=round(speeds["send"], 3),
                receive_gb_per_s=round(speeds["receive"], 3),
                copy_gb_per_s=round(copy, 3),
                slower_of_copy=round(min(speeds["pack"], speeds["unpack"]) / copy, 4),
            )
        )
    return rows


def _take_turns(
    copy: Job, jobs: dict[str, dict[str, Job]], device: str, turns: int
) -> tuple[list[float], dict[str, dict[str, list[float]]]]:
    """Seconds of each turn of the copy and of every job, after one warm-up turn."""
    copies: list[float] = []
    seconds: dict[str, dict[str, list[float]]] = {name: {job: [] for job in JOBS} for name in jobs}
    for turn in range(-1, turns):
        copies.append(_seconds(copy, device))
        for quantizer, by_name in jobs.items():
            for name, job in by_name.items():
                seldom = quantizer == SLOW or (device == "cuda" and name in ("send", "receive"))
                if turn < 1 or not seldom:
                    seconds[quantizer][name].append(_seconds(job, device))
    return copies[1:], {name: {job: taken[1:] for job, taken in times.items()} for name, times in seconds.items()}


def _copy_of(cache: KVCache) -> Job:
    target = torch.empty_like(cache.layers[0][0])

    def copy() -> None:
        for layer in cache.layers:
            for tensor in layer:
                target.copy_(tensor)

    return copy


def _jobs(cache: KVCache, scheme: Scheme) -> dict[str, Callable[[], Any]]:
    """The measured jobs: the quantizer alone, and the wire format with its checksums, to and from host memory."""
    geometry, shape = cache.geometry, cache.geometry.shape(cache.kept)
    packed = _packed(cache, scheme)
    buffers = [bytes(buffer) for buffer in encode(cache, scheme.name, MODEL)]

    def unpack() -> None:
        for keys, values in packed:
            scheme.decode(keys, values, shape, geometry.dtype)

    def receive() -> None:
        decoder = Decoder({MODEL: geometry}, device=cache.layers[0][0].device)
        for buffer in buffers:
            decoder.feed(buffer)
        decoder.finish()

    def pack() -> None:
        for layer in cache.layers:
            scheme.encode(*layer)

    def send() -> None:
        for _ in encode(cache, scheme.name, MODEL):
            pass

    return dict(zip(JOBS, (pack, unpack, send, receive), strict=True))


def _packed(cache: KVCache, scheme: Scheme) -> list[tuple[Tensor, Tensor]]:
    return [scheme.encode(*layer) for layer in cache.layers]


def _seconds(job: Job, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    job()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def codec_table(rows: Sequence[CodecSpeed], machine: str) -> Table:
    """The result of `bench_codec` on a machine as a table."""
    table = Table(
        title=f"GB/s of bf16 cache, one CPU core, torch {torch.__version__}, {machine}",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for title in ("device", "quantizer"):
        table.add_column(title)
    for title in ("layer", "bits/value", "pack", "unpack", "slower/copy", "send", "receive", "copy"):
        table.add_column(title, justify="right")
    for row in rows:
        speeds = row.send_gb_per_s, row.receive_gb_per_s, row.copy_gb_per_s
        table.add_row(
            row.device,
            row.quantizer,
            "x".join(map(str, row.shape)),
            f"{row.bits_per_value:.3f}",
            f"{row.pack_gb_per_s:.2f}",
            f"{row.unpack_gb_per_s:.2f}",
            f"{row.slower_of_copy:.1%}",
            *(f"{speed:.2f}" for speed in speeds),
        )
    return table
