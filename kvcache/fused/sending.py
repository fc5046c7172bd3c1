"""The sections of a cache on a GPU, packed there at once, and copied to host memory while checksums are computed."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from kvcache.fused.codec import Packed, launch_export, pack

# Of a copy: what goes out first needn't wait for the rest.
PIECES, LEAST_BYTES, MOST_BYTES = 4, 2**21, 2**24


@lru_cache(maxsize=16)
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which caches are copied, so that copies and kernels overlap."""
    return torch.cuda.Stream(device)


def sections(
    layers: tuple[tuple[Tensor, Tensor], ...], codes: tuple[int, ...], rows: Tensor | None
) -> Iterator[tuple[bool, memoryview, memoryview, int]]:
    """Yield each layer as soon as it is in host memory: whether its values could be quantized, keys, values, CRC-32.

    The memory is pinned and pooled by PyTorch; it is free again once no view of it is left. Arguments as for `pack`.
    """
    packed = pack(layers, codes, rows)
    layout = packed.layout
    host = torch.empty(len(packed.image), dtype=torch.uint8, pin_memory=True)
    copies = iter(_copies(packed, host))
    packed.checksum()
    found = _numbers(packed.results)
    view = host.numpy().data
    ready = -1
    for i, begin in enumerate(layout.offsets):
        middle, end = begin + layout.key_bytes[i], begin + layout.nbytes[i]
        while ready < end and (copy := next(copies, None)) is not None:
            ready, event = copy
            event.synchronize()
        usable = not (found[2 * i] or found[2 * i + 1])
        yield usable, view[begin:middle], view[middle:end], found[2 * len(layers) + i] & 0xFFFFFFFF


def _copies(packed: Packed, host: Tensor) -> list[tuple[int, torch.cuda.Event]]:
    """Start all copies; returns how far each goes, and its event."""
    stream = copy_stream(packed.image.device)
    stream.wait_stream(torch.cuda.current_stream(packed.image.device))
    started = []
    piece = min(MOST_BYTES, max(LEAST_BYTES, -(-len(host) // PIECES)))
    with torch.cuda.stream(stream):
        for begin in range(0, len(host), piece):
            end = min(len(host), begin + piece)
            host[begin:end].copy_(packed.image[begin:end], non_blocking=True)
            event = torch.cuda.Event()
            event.record(stream)
            started.append((end, event))
    packed.image.record_stream(stream)
    return started


def _numbers(results: Tensor) -> list[int]:
    """The numbers, once they are there; a copy would queue behind those of the cache."""
    host = torch.empty(len(results), dtype=torch.int32, pin_memory=True)
    launch_export(results, host)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(results.device))
    event.synchronize()
    numbers: list[int] = host.tolist()
    return numbers
