"""Stage timing without GPU synchronization between stages."""

import time
from typing import Any

import torch


class Stopwatch:
    """Takes laps on a device's own timeline: work launched before a lap counts towards it, whenever it runs."""

    def __init__(self, device: torch.device) -> None:
        """Start once the device has finished earlier work."""
        self._device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._marks = [self._mark()]

    def lap(self) -> None:
        """Mark the end of a stage."""
        self._marks.append(self._mark())

    def laps_ms(self) -> list[float]:
        """The duration of every stage in ms; waits for the last one."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._device.type != "cuda":
            return [1e3 * (after - before) for before, after in pairs]
        torch.cuda.synchronize(self._device)
        return [before.elapsed_time(after) for before, after in pairs]

    def _mark(self) -> Any:  # a time in s, or a CUDA event
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
