"""The edge's own answers, for requests that nothing else may answer in time: when each must be begun."""

import asyncio
from collections.abc import Container

from cloud.holds import Holds
from models.clock import now_s


class LastResorts:
    """Of one agent, whose compute serves one after the other: each begins so late that all can be in time."""

    def __init__(self) -> None:
        self._holds: Holds[int] = Holds()
        self._moments: dict[int, asyncio.Future[bool]] = {}  # in order of arrival
        self._timer: asyncio.TimerHandle | None = None

    def add(self, request_id: int, due_s: float, cost_ms: float) -> "asyncio.Future[bool]":
        """A future that is done at the last moment to begin `cost_ms` of work that is due then.

        Its result is whether it was hurried: then the request must not wait for a better answer.
        """
        self._moments[request_id] = moment = asyncio.get_running_loop().create_future()
        self._holds.add(request_id, request_id, due_s, cost_ms)
        self._look()
        return moment

    def drop(self, request_id: int) -> None:
        """The request has been answered. Unknown ids are ignored."""
        if self._moments.pop(request_id, None) is not None:
            self._holds.drop(request_id)
            self._look()

    def hurry(self, among: Container[int]) -> int | None:
        """Let the oldest request of these begin now; its id, None if there is none that hasn't begun."""
        for request_id, moment in self._moments.items():
            if request_id in among and not moment.done():
                self._holds.drop(request_id)
                moment.set_result(True)
                return request_id
        return None

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at_s = now_s()
        for request_id in self._holds.due(lambda _: at_s):
            self._moments[request_id].set_result(False)
        start_s = self._holds.next_start_s()
        if start_s is not None:
            self._timer = asyncio.get_running_loop().call_at(start_s, self._look)
