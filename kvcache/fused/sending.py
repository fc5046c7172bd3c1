"""The sections of a cache on a GPU, packed there at once, and copied to host memory while checksums are computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from kvcache.fused.codec import Layout, launch_export, pack
from kvcache.quantizers import CODES
from kvcache.sections import Section

# Of a copy: what goes out first needn't wait for the rest.
PIECES, LEAST_BYTES, MOST_BYTES = 4, 2**22, 2**24

Copy = tuple[int, torch.cuda.Event]  # the bytes up to there are in host memory once the event has happened
Sent = tuple[bool, bytes, memoryview, memoryview]


@lru_cache(maxsize=16)
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which caches are copied, so that copies and kernels overlap."""
    return torch.cuda.Stream(device)


@contextmanager
def queuing_on(stream: torch.cuda.Stream, current: torch.cuda.Stream) -> Iterator[None]:
    """`torch.cuda.stream(stream)`; faster on the current device, because its current stream is known."""
    if current.device.index != torch.cuda.current_device():
        with torch.cuda.stream(stream):
            yield
        return
    torch.cuda.set_stream(stream)
    try:
        yield
    finally:
        torch.cuda.set_stream(current)


def start(layers: tuple[tuple[Tensor, Tensor], ...], codes: tuple[int, ...], rows: Tensor | None) -> Iterator[Sent]:
    """Start packing and copying now; returns an iterator over layers, each as soon as it is in host memory.

    It yields whether the layer's values could be quantized, its section's header, keys, values. The memory is pinned
    and pooled by PyTorch; it is free again once no view of it is left. Arguments as for `pack`.
    """
    packed = pack(layers, codes, rows)
    host = torch.empty(len(packed.image), dtype=torch.uint8, pin_memory=True)
    copies = _start_copies(packed.image, host)
    packed.checksum()
    return _sections(packed.layout, codes, host, copies, Export(packed.results))


def _sections(
    layout: Layout, codes: tuple[int, ...], host: Tensor, copies: list[Copy], export: "Export"
) -> Iterator[Sent]:
    count = len(codes)
    found = export.numbers()
    view = host.numpy().data
    sent = []  # all of them while the bytes are still being copied
    for i, (code, begin, keys, both) in enumerate(
        zip(codes, layout.offsets, layout.key_bytes, layout.nbytes, strict=True)
    ):
        header = Section(i, CODES[code], keys, both - keys, found[2 * count + i] & 0xFFFFFFFF).header()
        middle, end = begin + keys, begin + both
        sent.append((not (found[2 * i] or found[2 * i + 1]), header, view[begin:middle], view[middle:end]))
    ready, coming = -1, iter(copies)
    for one, begin, both in zip(sent, layout.offsets, layout.nbytes, strict=True):
        while ready < begin + both and (copy := next(coming, None)) is not None:
            ready, event = copy
            event.synchronize()
        yield one


def _start_copies(image: Tensor, host: Tensor) -> list[Copy]:
    stream, current = copy_stream(image.device), torch.cuda.current_stream(image.device)
    stream.wait_stream(current)
    started = []
    piece = min(MOST_BYTES, max(LEAST_BYTES, -(-len(host) // PIECES)))
    with queuing_on(stream, current):
        for begin in range(0, len(host), piece):
            end = min(len(host), begin + piece)
            host[begin:end].copy_(image[begin:end], non_blocking=True)
            event = torch.cuda.Event()
            event.record(stream)
            started.append((end, event))
    image.record_stream(stream)
    return started


class Export:
    """Numbers on their way to the CPU; a copy would queue behind those of the cache."""

    def __init__(self, results: Tensor) -> None:
        """Start: int32, one row."""
        self._host = torch.empty(len(results), dtype=torch.int32, pin_memory=True)
        launch_export(results, self._host)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(results.device))

    def numbers(self) -> list[int]:
        """The numbers, once they are there."""
        self._event.synchronize()
        numbers: list[int] = self._host.tolist()
        return numbers
