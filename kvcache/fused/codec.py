"""Whole caches packed and unpacked by a kernel launch for each quantizer, and the CRC-32 of their sections.

What the CPU does for a call competes with microseconds of the GPU: what depends on the shape alone is kept in a
`Layout`, and everything that a call's kernels need goes up in one copy.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kvcache.cache import DTYPES
from kvcache.crc32 import ONE, conditioning, multiply, power
from kvcache.fused import kernels
from kvcache.fused.launching import Numbers, call, items_of, power_of_two, row_of, upload
from kvcache.quantizers import CODES, Quantizer, Scheme
from kvcache.quantizers.as_is import AsIs
from kvcache.quantizers.base import Shape
from kvcache.quantizers.symmetric import Symmetric
from kvcache.sections import SECTION_BYTES

ALIGN = 16  # bytes: where sections begin in an image, and the widest access of a thread
COLUMNS: int = kernels.COLUMNS.value
LANES, STEPS = 512, 32  # words of a chunk of CRC-32
CHUNK_BYTES = 4 * LANES * STEPS
# By measurements on an H200: values of a program, and its warps.
VALUES = {"pack": 4096, "unpack": 2048}
WARPS = {"pack": 4, "unpack": 4, "checksums": 4}
CHANNEL_WARPS = {"pack": 2, "unpack": 8}  # where a program has a whole group of positions


class Job(NamedTuple):
    """A kernel's part of a cache: its name, its rows of the table, and the alignment of its bytes in an image."""

    quantizer: Quantizer
    first: int
    segments: int
    aligned: int


@dataclass(frozen=True, eq=False, slots=True)
class Layout:
    """Where the sections of a cache are in an image, and what kernels need to know of that.

    Attributes:
        offsets, key_bytes, nbytes: of each section: where its keys begin, which its values follow at once.
        order: the segments (2 * layer, plus 1 for values) in the order of the table.
        template: int64 [segments, COLUMNS], the table without addresses and strides.
        image_bytes: of the image.
    """

    offsets: list[int]
    key_bytes: list[int]
    nbytes: list[int]
    order: Numbers
    template: Numbers
    jobs: tuple[Job, ...]
    image_bytes: int


@dataclass(frozen=True, eq=False, slots=True)
class Packed:
    """A packed cache on its device.

    Attributes:
        image: uint8, the sections' keys and values as they go on the wire, each section at its offset.
        results: int32 [3 * layers]: 1 for segments that couldn't be quantized; then sections' CRC-32, by `checksum`.
        launch: packs once more.
    """

    layout: Layout
    image: Tensor
    results: Tensor
    launch: Callable[[], None]

    def checksum(self) -> None:
        """Compute the CRC-32 of each section, without waiting for it."""
        checks = _checks(self.layout, self.image.device)
        _checksum(self.layout, self.image, checks, self.results[2 * len(self.layout.offsets) :])


@dataclass(frozen=True, eq=False, slots=True)
class Unpacked:
    """An unpacked cache: [2 * sections, kv_heads, positions, head_dim], keys, then values of each section.

    Attributes:
        launch: unpacks once more.
    """

    tensors: Tensor
    launch: Callable[[], None]


def suits(scheme: Scheme, head_dim: int) -> bool:
    """Whether kernels exist for a scheme and a head size."""
    known = all(isinstance(quantizer, Symmetric | AsIs) for quantizer in (scheme.keys, scheme.values))
    return known and head_dim % 2 == 0 and 16 <= head_dim <= 256


@lru_cache(maxsize=256)
def layout_of(codes: tuple[int, ...], shape: Shape, received: bool = False) -> Layout:
    """The layout of sections of these schemes, which kernels must suit.

    Args:
        received: whether the image is of the bytes on the wire, each section behind its header; else sections are at
            multiples of ALIGN.
    """
    schemes = [CODES[code] for code in codes]
    key_bytes = [scheme.keys.max_size(shape) for scheme in schemes]
    nbytes = [size + scheme.values.max_size(shape) for size, scheme in zip(key_bytes, schemes, strict=True)]
    offsets, at = [], 0
    for size in nbytes:
        at += SECTION_BYTES if received else -at % ALIGN
        offsets.append(at)
        at += size
    segments: dict[Quantizer, list[tuple[int, int]]] = {}  # their offsets and numbers
    for i, scheme in enumerate(schemes):
        segments.setdefault(scheme.keys, []).append((offsets[i], 2 * i))
        segments.setdefault(scheme.values, []).append((offsets[i] + key_bytes[i], 2 * i + 1))
    jobs, first = [], 0
    for quantizer, found in segments.items():
        aligned = power_of_two(int(np.bitwise_or.reduce([offset for offset, _ in found])) | 2 * shape[0] | ALIGN)
        jobs.append(Job(quantizer, first, len(found), aligned))
        first += len(found)
    template = np.zeros((first, COLUMNS), np.int64)
    template[:, 3:] = [row for found in segments.values() for row in found]
    return Layout(offsets, key_bytes, nbytes, template[:, 4].copy(), template, tuple(jobs), at)


@lru_cache(maxsize=256)
def checks_of(layout: Layout) -> Numbers:
    """The table of `kernels.checksums`, int64 [sections, 4]; by itself, because powers take a while."""
    checks = [
        (offset, size, power(32 - 8 * (-size % CHUNK_BYTES)), conditioning(size))
        for offset, size in zip(layout.offsets, layout.nbytes, strict=True)
    ]
    return np.array(checks, np.int64)


def pack(layers: Sequence[tuple[Tensor, Tensor]], codes: tuple[int, ...], rows: Tensor | None = None) -> Packed:
    """Pack a cache, without waiting for it.

    Args:
        layers: (keys, values) of every layer, each [kv_heads, positions, head_dim].
        codes: the scheme of every layer.
        rows: int64, on the CPU, the positions to pack; None for all.
    """
    first = layers[0][0]
    heads, n, head_dim = first.shape
    shape = heads, n if rows is None else len(rows), head_dim
    layout = layout_of(codes, shape)
    image = torch.empty(-(-layout.image_bytes // ALIGN) * ALIGN, dtype=torch.uint8, device=first.device)
    tensors = [tensor for layer in layers for tensor in layer]
    strides = [tensor.stride() for tensor in tensors]
    if any(stride[2] != 1 for stride in strides):
        tensors = [tensor.contiguous() for tensor in tensors]
        strides = [tensor.stride() for tensor in tensors]
    count = 3 * len(layers)
    used = layout.template.size
    end = used + (count + 1) // 2
    row, numbers = row_of(end + (0 if rows is None else len(rows)), first.device)
    table = numbers[:used].reshape(-1, COLUMNS)
    table[:] = layout.template
    addresses = np.array([tensor.data_ptr() for tensor in tensors], np.int64)
    table[:, 0] = addresses[layout.order]
    if strides.count(strides[0]) == len(strides):
        by_head, by_position, _ = strides[0]
        table[:, 1], table[:, 2], common = by_head, by_position, by_head | by_position
    else:
        table[:, 1:3] = np.array(strides, np.int64)[layout.order, :2]
        common = int(np.bitwise_or.reduce(table[:, 1] | table[:, 2]))
    items = items_of(addresses, common, first.element_size())
    if rows is not None:
        numbers[end:] = rows.numpy()
    there = upload(row, first.device)
    results = there.view(torch.int32)[2 * used : 2 * used + count]
    arguments = (there if rows is None else there[end:], image, results)
    launch = partial(_launch, "pack", layout, there, arguments, shape, first.dtype, items, (rows is not None,))
    launch()
    return Packed(layout, image, results, launch)


def unpack(
    layout: Layout, image: Tensor, flags: Tensor, dtype: torch.dtype, shape: Shape,
    expected: tuple[list[int], Tensor] | None = None,
) -> Unpacked:  # fmt: skip
    """Unpack sections of an image, and check them, without waiting for either.

    Args:
        flags: int32, zeros; gets 1 for segments with scales that no encoder writes.
        expected: the sections' CRC-32, and int32, zeros, which get another value for sections that have another CRC-32.
    """
    segments, size = len(layout.order), dtype.itemsize * math.prod(shape)
    out = torch.empty((segments, *shape), dtype=dtype, device=image.device)
    _, n, head_dim = shape
    addresses = out.data_ptr() + size * np.arange(segments, dtype=np.int64)
    used = layout.template.size
    row, numbers = row_of(used + (0 if expected is None else 4 * len(layout.offsets)), image.device)
    table = numbers[:used].reshape(-1, COLUMNS)
    table[:] = layout.template
    table[:, 0] = addresses[layout.order]
    table[:, 1], table[:, 2] = n * head_dim, head_dim
    items = items_of(addresses, n * head_dim | head_dim, dtype.itemsize)
    if expected is not None:
        checks = numbers[used:].reshape(-1, 4)
        checks[:] = checks_of(layout)
        checks[:, 3] ^= expected[0]
    there = upload(row, image.device)
    if expected is not None:
        _checksum(layout, image, there[used:], expected[1])
    launch = partial(_launch, "unpack", layout, there, (image, flags), shape, dtype, items, ())
    launch()
    return Unpacked(out, launch)


def _launch(
    action: str, layout: Layout, table: Tensor, arguments: tuple[Tensor, ...], shape: Shape, dtype: torch.dtype,
    items: int, last: tuple[bool, ...],
) -> None:  # fmt: skip
    """Launch a kernel for each job of a layout."""
    heads, n, head_dim = shape
    if not heads * n:
        return
    for job in layout.jobs:
        kernel, rows, warps, constants = _kernel(action, job.quantizer, head_dim, DTYPES.index(dtype))
        rows_of_job = table[job.first * COLUMNS :] if job.first else table
        grid = (-(-n // rows), heads, job.segments)
        call(kernel, grid, (rows_of_job, *arguments, n), (*constants, items, job.aligned, *last), warps)


@lru_cache(maxsize=256)
def _kernel(action: str, quantizer: Quantizer, head_dim: int, kind: int) -> tuple[Any, int, int, tuple[int, ...]]:
    """The kernel, the positions of a program, its warps, and its first constants."""
    if isinstance(quantizer, Symmetric):
        half = head_dim // 2
        wide = 1 << (half - 1).bit_length()
        grouped = quantizer.group is not None
        rows = quantizer.group or max(1, VALUES[action] // (2 * wide))
        warps = (CHANNEL_WARPS if grouped else WARPS)[action]
        kernel = getattr(kernels, f"{action}_channels" if grouped else f"{action}_tokens")
        return kernel, rows, warps, (kind, quantizer.bits, head_dim, half, wide, rows)
    wide = 1 << (head_dim - 1).bit_length()
    rows = max(1, VALUES[action] // wide)
    return getattr(kernels, f"{action}_as_is"), rows, WARPS[action], (kind, head_dim, wide, rows)


def _checksum(layout: Layout, image: Tensor, checks: Tensor, sums: Tensor) -> None:
    longest = max(layout.nbytes)
    if not longest:
        return
    chunks = -(-longest // CHUNK_BYTES)
    lane_powers, powers = _lane_powers(image.device)
    chunk_powers = _chunk_powers(image.device, max(256, 1 << (chunks - 1).bit_length()))
    aligned = 4 if layout.offsets[0] else ALIGN
    arguments = (checks, image, lane_powers, chunk_powers, sums)
    call(
        kernels.checksums,
        (chunks, len(layout.offsets), 1),
        arguments,
        (powers, LANES, STEPS, aligned),
        WARPS["checksums"],
    )


def launch_export(numbers: Tensor, host: Tensor) -> None:
    """Write int32 to pinned host memory, without waiting for it."""
    call(kernels.export, (1, 1, 1), (numbers, host, len(numbers)), (1 << (len(numbers) - 1).bit_length(),), 1)


@lru_cache(maxsize=256)
def _checks(layout: Layout, device: torch.device) -> Tensor:
    return torch.from_numpy(checks_of(layout)).to(device)


@lru_cache(maxsize=8)
def _lane_powers(device: torch.device) -> tuple[Tensor, tuple[int, ...]]:
    lanes = [power(32 * (LANES - 1 - lane)) for lane in range(LANES)]
    powers = [power(32 * LANES + i) for i in range(32)]
    return _to_device(_signed(lanes), device), tuple(_signed(powers).tolist())


@lru_cache(maxsize=32)
def _chunk_powers(device: torch.device, count: int) -> Tensor:
    """x to the power of 0, 1, ... `count` - 1 chunks; `count` is a power of two."""
    found = [ONE]
    while len(found) < count:
        factor = power(8 * CHUNK_BYTES * len(found))
        found += [multiply(one, factor) for one in found]
    return _to_device(_signed(found), device)


def _signed(numbers: list[int]) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.uint32).view(np.int32)


def _to_device(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
