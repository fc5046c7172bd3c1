"""What befalls the processes of one turn, and what was done about it: the same account on either clock."""

from collections import Counter, deque
from collections.abc import Callable

from cluster.scenario.events import EventKind, Part
from cluster.scenario.recovery import RecoverySettings
from models.clock import now_s

Record = Callable[[str, EventKind], None]
"""Takes an event's text and its kind."""
REPORTS_KEPT = 1000


class Told:
    """What the allocator of a turn has been told of the channel, for another one that takes its place.

    Attributes:
        reports_mbps: the last ones, in order; peek_mbps: the present rate. Link-layer Mbit/s.
    """

    def __init__(self, first_mbps: float) -> None:
        self.reports_mbps: deque[float] = deque([first_mbps], maxlen=REPORTS_KEPT)
        self.peek_mbps = first_mbps

    def report(self, mbps: float) -> None:
        """One more report."""
        self.reports_mbps.append(mbps)


class Recoveries:
    """Decides whether a part is started again, and records deaths and returns.

    Args:
        record: writes the timeline.
    """

    def __init__(self, settings: RecoverySettings, record: Record) -> None:
        self._settings = settings
        self._record = record
        self._used: Counter[Part] = Counter()
        self._since_s: dict[Part, float] = {}

    def died(self, part: Part, cause: str = "") -> bool:
        """Record that a part is gone. Whether it is to be started again, which counts as one of its restarts."""
        self._record(f"{part} died{cause and f': {cause}'}", "fault")
        self._since_s[part] = now_s()
        if self._used[part] >= self._settings.restarts:
            if self._settings.restarts:
                self._record(f"{part} stays away: it was started again {self._used[part]} times", "fault")
            return False
        self._used[part] += 1
        return True

    def back(self, part: Part) -> None:
        """Record that a part is there again."""
        self._record(f"{part} is back after {now_s() - self._since_s.pop(part):.1f} s", "recovery")

    def failed(self, part: Part, why: str) -> None:
        """Record that a part could not be started again."""
        self._record(f"{part} can't be started again: {why}", "fault")


def silent(seconds: float) -> str:
    """What befell a part that doesn't answer: said after its name."""
    return f"had not answered for {seconds:g} s and was ended"
