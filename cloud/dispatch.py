"""Which worker of the pool a request goes to, and what is promised to each."""

from models.clock import now_s


class LeastLoaded:
    """The worker that will be free first by what is promised to it; the lowest number among equals.

    Workers serve in order of arrival. What arrives when is told by the agents, what it takes by the profile.
    """

    def __init__(self, workers: int) -> None:
        self._promised_ms = [0.0] * workers
        self._promises = [0] * workers
        self._jobs: dict[int, tuple[int, float]] = {}
        self._arrived: list[dict[int, None]] = [{} for _ in range(workers)]  # request ids in order of arrival
        self._serving_since_s = [0.0] * workers

    def choose(self, request_id: int, cloud_ms: float) -> int:
        """A worker for a request that will occupy it for `cloud_ms`."""
        free_in_ms = self.free_in_ms()
        worker = free_in_ms.index(min(free_in_ms))
        self._jobs[request_id] = (worker, cloud_ms)
        self._promised_ms[worker] += cloud_ms
        self._promises[worker] += 1
        return worker

    def arrived(self, request_id: int) -> None:
        """The worker has the whole request; unknown ids are fine."""
        job = self._jobs.get(request_id)
        if job is not None:
            queue = self._arrived[job[0]]
            if not queue:
                self._serving_since_s[job[0]] = now_s()
            queue[request_id] = None

    def done(self, request_id: int) -> None:
        """That work is off its worker, however it ended; unknown ids are fine."""
        job = self._jobs.pop(request_id, None)
        if job is None:
            return
        worker, cloud_ms = job
        queue = self._arrived[worker]
        self._promises[worker] -= 1
        # Sums of differences drift; an idle worker has promised nothing.
        self._promised_ms[worker] = self._promised_ms[worker] - cloud_ms if self._promises[worker] else 0.0
        if request_id in queue:
            was_served = next(iter(queue)) == request_id
            del queue[request_id]
            if was_served:
                self._serving_since_s[worker] = now_s()

    def free_in_ms(self) -> tuple[float, ...]:
        """For each worker, when it will have done what is promised to it, if that were all there already."""
        at_s = now_s()
        free_in_ms = []
        for promised_ms, queue, since_s in zip(self._promised_ms, self._arrived, self._serving_since_s, strict=True):
            if queue:
                serving_ms = self._jobs[next(iter(queue))][1]
                promised_ms -= min(serving_ms, (at_s - since_s) * 1e3)
            free_in_ms.append(max(0.0, promised_ms))
        return tuple(free_in_ms)
