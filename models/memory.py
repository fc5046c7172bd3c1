"""The peak memory use of a process."""

import resource
import sys
from typing import Any


def peak_memory_mb() -> dict[str, float]:
    """This process's peak memory in MB: `resident`, and `gpu` if it uses one."""
    peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    torch: Any = sys.modules.get("torch")  # without torch loaded there is no GPU memory
    if torch is not None and torch.cuda.is_initialized():
        peak["gpu"] = torch.cuda.max_memory_reserved() / 2**20
    return {kind: round(mb, 1) for kind, mb in peak.items()}
