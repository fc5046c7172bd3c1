"""The base of all channels: a settings object that plays a piecewise-constant rate."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from configs.settings import Settings

# The kernel's shapers have no rate of zero: a channel plays a total outage as this rate (a frame every 1.2 s). A grant
# may be lower: `wire.MIN_SHAPED_MBPS`.
MIN_CHANNEL_MBPS = 0.01


class RateChange(NamedTuple):
    """The uplink's rate from `at_s` seconds after the run's start on: `mbps` Mbit/s (link layer, decimal)."""

    at_s: float
    mbps: float


class Channel(Settings):
    """Base of all channels. Equal settings and an equal seed play equal rates."""

    def play(self, seed: int) -> Iterator[RateChange]:
        """Yield rate changes in order of time; the first is at 0 s.

        The sequence is infinite, or its last rate holds for ever.
        """
        raise NotImplementedError

    def changes_within(self, end_s: float) -> float:
        """About how many changes `play` yields before `end_s` seconds, without playing them."""
        return 1.0

    def until(self, seed: int, end_s: float) -> list[RateChange]:
        """All changes before `end_s` seconds (at least the first), with equal successive rates merged."""
        changes: list[RateChange] = []
        for change in self.play(seed):
            if changes and change.at_s >= end_s:
                break
            if not changes or change.mbps != changes[-1].mbps:
                changes.append(change)
        return changes


def with_preset(settings: Any, key: str, presets: dict[str, dict[str, float]]) -> Any:
    """Complete raw settings by those of the preset that `settings[key]` names; explicit settings take precedence.

    Raises ValueError for an unknown name, with a list of the known ones.
    """
    name = settings.get(key) if isinstance(settings, dict) else None
    if name is None:
        return settings
    if name not in presets:
        raise ValueError(f"no {key} {name!r}; there are {', '.join(presets)}")
    return presets[name] | settings


def preset_in_schema(key: str, presets: dict[str, dict[str, float]]) -> Callable[[dict[str, Any]], None]:
    """For `json_schema_extra`: what `with_preset` accepts, which is a preset's name or all settings."""

    def extend(schema: dict[str, Any]) -> None:
        schema["properties"][key] = {"enum": list(presets), "description": schema["properties"][key]["description"]}
        schema["anyOf"] = [{"required": [key]}, {"required": schema.pop("required")}]

    return extend


def mean_rate_mbps(changes: list[RateChange], end_s: float) -> float:
    """Time average, in Mbit/s, of a piecewise-constant rate over [0, end_s]."""
    ends = [*changes, RateChange(end_s, 0.0)]
    return sum((b.at_s - a.at_s) * a.mbps for a, b in pairwise(ends)) / end_s
