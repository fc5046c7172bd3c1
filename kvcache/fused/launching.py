"""Calls of Triton kernels with little work on the CPU: Triton's own dispatch takes longer than many a kernel."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from triton.runtime import driver

Numbers = np.ndarray[Any, np.dtype[np.int64]]

_compiled: dict[tuple[Any, ...], Any] = {}


def call(
    function: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], constants: tuple[Any, ...], warps: int
) -> None:
    """Call a kernel; after its first call without Triton's dispatch.

    That is right because arguments of one place are always of one type, and kernels aren't specialized to their values.

    Args:
        arguments: the first one is a tensor on the device.
        constants: its `constexpr`, which come last.
    """
    device = arguments[0].device
    key = (function, device, constants, warps)
    kernel = _compiled.get(key)
    with _on(device):
        if kernel is None:
            _compiled[key] = function[grid](*arguments, *constants, num_warps=warps, enable_fp_fusion=False)
            return
        # Addresses as numbers: the driver would be asked about each tensor.
        plain = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        stream = driver.active.get_current_stream(device.index)
        kernel.run(*grid, stream, kernel.function, kernel.packed_metadata, None, None, None, *plain, *constants)


def row_of(count: int, device: torch.device) -> tuple[Tensor, Numbers]:
    """A row of numbers to be filled and uploaded, as a tensor and as an array: zeros, in pinned memory for a GPU."""
    row = torch.empty(count, dtype=torch.int64, pin_memory=device.type == "cuda")  # pooled by PyTorch
    numbers = row.numpy()
    numbers[:] = 0
    return row, numbers


def upload(row: Tensor, device: torch.device) -> Tensor:
    """Copy a row to the device without waiting; its memory may be forgotten, and isn't used again before that."""
    return row.to(device, non_blocking=True)


def power_of_two(number: int) -> int:
    """The largest power of two that divides a number."""
    return number & -number


def items_of(addresses: Numbers, strides: int, size: int) -> int:
    """Elements of `size` bytes, up to 16 bytes, that divide every address, and the strides (in elements, all ORed)."""
    return power_of_two(int(np.bitwise_or.reduce(addresses)) // size | strides | 16 // size)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Kernels launch on this device."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
