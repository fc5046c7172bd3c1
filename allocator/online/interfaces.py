"""The parts that the allocator works with, as it sees them: estimator, pool of cloud workers, link."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from allocator.problem import ModeOption

NO_WORKER = -1


class NoWorkerAlive(RuntimeError):
    """All cloud workers are lost, and the request can't be answered on the edge."""


@dataclass(frozen=True, slots=True)
class CloudJob:
    """The cloud work of one request, as its worker schedules it.

    Attributes:
        deadline_s: of the answer, on the event loop's clock, as in the request's frame.
        prefill_ms: worker time that the request needs alone.
        decode_ms: worker time that it can share with other requests of the same decoder.
        decoder: requests with an equal decoder can be decoded in one batch.
        generation: see `ModeOption`.
    """

    deadline_s: float
    prefill_ms: float
    decode_ms: float
    decoder: Hashable = 0
    generation: Any = None

    @property
    def cost_ms(self) -> float:
        """Worker time if it is served alone."""
        return self.prefill_ms + self.decode_ms


class Dispatcher(Protocol):
    """Picks a cloud worker for each request and predicts when workers are free. See `cloud.dispatch`.

    Request ids that were never chosen a worker, or whose worker was lost, are ignored by all methods but `predict`.
    """

    def choose(self, request_id: int, job: CloudJob) -> int:
        """The worker that gets the request; `NO_WORKER` if no worker is alive (the request is not remembered then)."""
        ...

    def given(self, request_id: int, job: CloudJob, worker: int) -> None:
        """The request has that worker already, from before; ignored if the worker is lost."""
        ...

    def predict(self, request_id: int, arrives_s: float) -> float:
        """When the answer of a chosen request is ready if the worker has the request at `arrives_s` (loop time).

        Raises:
            KeyError: the request has no worker, or has ended.
        """
        ...

    def arrived(self, request_id: int) -> None:
        """The worker has the whole request."""
        ...

    def done(self, request_id: int, gave_up: bool = False) -> None:
        """The request has ended.

        Args:
            gave_up: the agent stopped waiting: a worker that has the request serves it nevertheless.
        """
        ...

    def lost(self, worker: int) -> None:
        """The worker is dead or frozen: it gets no more requests, and those that it had are forgotten."""
        ...

    def restored(self, worker: int) -> None:
        """The worker serves again, with an empty queue."""
        ...

    def free_in_ms(self) -> tuple[float, ...]:
        """For each worker, how long it needs for the requests chosen for it, were all there already; inf if lost."""
        ...

    def begin_in_ms(self) -> tuple[float, ...] | None:
        """For each worker, when it can begin with one more request; None: when it is free."""
        ...

    def loaded(self, option: ModeOption) -> ModeOption:
        """The option as the worker with the least work left would serve it among its other requests."""
        ...


class Estimator(Protocol):
    """Believes something about the uplink. See `agents.estimators`."""

    def report(self, mbps: float) -> None:
        """The base station measured `mbps` over the interval that has just ended."""
        ...

    def peek(self, mbps: float) -> None:
        """The rate that begins now; only estimators that openly look ahead use it."""
        ...

    def estimate(self) -> float:
        """Mbit/s."""
        ...

    def spread(self, intervals: float = 1.0) -> Sequence[float]:
        """Equally probable mean rates (Mbit/s, ascending) of the next report intervals; one if there is no doubt."""
        ...


class Link(Protocol):
    """Carries grants out."""

    async def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        """Give each named agent its share of the uplink from now on."""
        ...
