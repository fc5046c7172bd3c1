"""How requests stand that have not ended, as their agents tell an allocator that takes them over."""

from dataclasses import dataclass

from allocator.problem import Plan, Request


@dataclass(frozen=True, slots=True)
class Standing:
    """One request.

    Attributes:
        plan: as it was assigned; None while it has not been.
        since_s: when it was assigned, on the event loop's clock.
        received: whether the cloud needs no more of it.
    """

    request: Request
    plan: Plan | None = None
    since_s: float = 0.0
    received: bool = False
