"""What a process that runs models may use of the machine."""

from functools import cache

import torch


@cache
def use_device(gpu_fraction: float) -> None:
    """Keep to this share of a GPU's memory, where there is one, and to one CPU core; once in a process."""
    torch.set_num_threads(1)  # many actors share the cores; a thread each for every one would be slower for all
    if torch.cuda.is_available() and 0 < gpu_fraction < 1:
        torch.cuda.set_per_process_memory_fraction(gpu_fraction)
