"""A process's share of the machine for running models."""

from functools import cache

import torch

CONTEXT_BYTES = 600 * 2**20  # the CUDA context's memory in every process, besides tensors


@cache
def use_device(gpu_fraction: float) -> None:
    """Limit this process to a share of the GPU's memory, if there is one, and to one CPU core. Call once.

    Shares may add up to a whole GPU: the CUDA context counts within the share.
    """
    torch.set_num_threads(1)  # many actors share the cores; more threads would slow all of them down
    if torch.cuda.is_available() and 0 < gpu_fraction < 1:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(max(0.0, gpu_fraction - CONTEXT_BYTES / total))
