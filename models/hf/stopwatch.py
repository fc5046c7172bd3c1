"""Stage times that don't make a GPU wait between stages."""

import time
from typing import Any

import torch


class Stopwatch:
    """Takes laps on a device's own timeline: what is launched before a lap counts into it, whenever it runs."""

    def __init__(self, device: torch.device) -> None:
        """Starts it, when the device has done everything before."""
        self._device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._marks = [self._mark()]

    def lap(self) -> None:
        """A stage has ended (or will have, on the device)."""
        self._marks.append(self._mark())

    def laps_ms(self) -> list[float]:
        """Milliseconds of every stage; waits for the last."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._device.type != "cuda":
            return [1e3 * (after - before) for before, after in pairs]
        torch.cuda.synchronize(self._device)
        return [before.elapsed_time(after) for before, after in pairs]

    def _mark(self) -> Any:  # a time, or an event
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event
