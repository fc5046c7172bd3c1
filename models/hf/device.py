"""What a process that runs models may use of the machine."""

from functools import cache

import torch

CONTEXT_BYTES = 600 * 2**20  # what CUDA itself takes of a GPU in every process, beside tensors


@cache
def use_device(gpu_fraction: float) -> None:
    """Keep to this share of a GPU's memory, where there is one, and to one CPU core; once in a process.

    Shares may add up to a whole GPU: what CUDA takes for itself is within the share, not on top of it.
    """
    torch.set_num_threads(1)  # many actors share the cores; a thread each for every one would be slower for all
    if torch.cuda.is_available() and 0 < gpu_fraction < 1:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        torch.cuda.set_per_process_memory_fraction(max(0.0, gpu_fraction - CONTEXT_BYTES / total))
