"""One mode always, whatever the uplink does."""

from allocator.policies.equal import Equal
from allocator.problem import ModeOption, Request
from kvcache.modes import Mode


class Static(Equal):
    """`static_<mode>`: that mode for every request on an equal share; the floor that adapting must beat."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.name = f"static_{mode}"

    def choose(self, request: Request, mbps: float, time_left_ms: float) -> ModeOption:
        """The one mode.

        Raises:
            ValueError: the request doesn't offer it.
        """
        for option in request.options:
            if option.mode == self.mode:
                return option
        offered = ", ".join(str(option.mode) for option in request.options)
        raise ValueError(f"policy {self.name}: agent {request.agent_id} has no mode '{self.mode}', only {offered}")
