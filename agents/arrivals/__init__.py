"""Arrival processes: when requests are released, by which agents, and of which lengths.

Each process is one small pydantic class. Add yours to `AnyArrivals`, and every registry test runs on it.
"""

from typing import Annotated, get_args

from pydantic import Field

from agents.arrivals.base import MAX_REQUESTS, MAX_TURN_S, Arrival, ArrivalProcess, ArrivalTraceError
from agents.arrivals.generated import GeneratedWorkload
from agents.arrivals.timed import Bursts, Poisson, Synchronized
from agents.arrivals.trace import TraceArrivals, read_arrival_trace
from agents.arrivals.workload import WorkloadFile

AnyArrivals = Annotated[
    Synchronized | Poisson | Bursts | TraceArrivals | WorkloadFile | GeneratedWorkload, Field(discriminator="kind")
]
ARRIVALS: dict[str, type[ArrivalProcess]] = {
    process.model_fields["kind"].default: process for process in get_args(get_args(AnyArrivals)[0])
}

__all__ = [
    "ARRIVALS",
    "MAX_REQUESTS",
    "MAX_TURN_S",
    "AnyArrivals",
    "Arrival",
    "ArrivalProcess",
    "ArrivalTraceError",
    "read_arrival_trace",
]
