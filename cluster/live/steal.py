"""CPU time that a virtual machine wanted and didn't get: what its host gave to others."""

from pathlib import Path

STAT = Path("/proc/stat")


class StealMeter:
    """Measures from its creation on."""

    def __init__(self) -> None:
        self._stolen, self._all = _ticks()

    def share(self) -> float:
        """Of the machine's CPU time since then, the part that was stolen; 0 where the kernel doesn't say."""
        stolen, in_all = _ticks()
        return (stolen - self._stolen) / max(1, in_all - self._all)


def _ticks() -> tuple[int, int]:
    """Stolen ticks and all ticks since boot, over all CPUs: proc_stat(5)."""
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, STAT.read_text().split(None, 9)[1:9])
    return steal, user + nice + system + idle + iowait + irq + softirq + steal
