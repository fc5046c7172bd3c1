"""Which worker of the pool a request goes to."""


class LeastLoaded:
    """The worker with the least work promised to it, in ms of its time; the lowest number among equals."""

    def __init__(self, workers: int) -> None:
        self._load_ms = [0.0] * workers

    def choose(self, cloud_ms: float) -> int:
        """A worker for a request that will occupy it for `cloud_ms`."""
        worker = min(range(len(self._load_ms)), key=self._load_ms.__getitem__)
        self._load_ms[worker] += cloud_ms
        return worker

    def done(self, worker: int, cloud_ms: float) -> None:
        """That work is off the worker, however it ended."""
        self._load_ms[worker] = max(0.0, self._load_ms[worker] - cloud_ms)
