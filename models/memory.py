"""How much memory a process has used."""

import resource
import sys
from typing import Any


def peak_memory_mb() -> dict[str, float]:
    """The most that this process has had resident, and of a GPU if it uses one, in MB."""
    peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    torch: Any = sys.modules.get("torch")  # whoever hasn't loaded it has no GPU memory
    if torch is not None and torch.cuda.is_initialized():
        peak["gpu"] = torch.cuda.max_memory_reserved() / 2**20
    return {kind: round(mb, 1) for kind, mb in peak.items()}
