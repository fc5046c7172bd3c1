"""`scout channel`: the rates that a channel plays, without a run."""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import fmean
from typing import Any

from pydantic import ValidationError
from rich.columns import Columns
from rich.console import Console

from cluster.scenario.explain import located
from configs.yaml_text import YamlRefused, load_yaml
from netem.channels import CHANNELS, Channel
from netem.channels.ar1 import PUBLISHED
from netem.channels.cellular import CELLS

MAX_STEPS = 1_000_000


class ChannelError(ValueError):
    """Wrong kind or settings; the message says what is allowed."""


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Settings written as `key=value`, the value as in a scenario file. Raises ChannelError: they aren't."""
    given: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ChannelError(f"--set takes key=value, not {setting!r}")
        if key in given:
            raise ChannelError(f"--set {key} is given twice")
        try:
            given[key] = load_yaml(value)
        except YamlRefused as error:
            raise ChannelError(f"--set {key}: {value!r} is not a value: {error.reason}") from None
    return given


def make_channel(kind: str, settings: Mapping[str, Any]) -> Channel:
    """A channel by its kind, or by the name of a published 5G scenario or of a cell.

    Raises:
        ChannelError: no such kind, or wrong settings.
    """
    given = dict(settings)
    if kind in PUBLISHED:
        given = {"scenario": kind, **given}
        kind = "ar1"
    if kind in CELLS:
        given = {"cell": kind, **given}
        kind = "cellular"
    if kind not in CHANNELS:
        raise ChannelError(f"no channel {kind!r}; there are {', '.join([*CHANNELS, *PUBLISHED, *CELLS])}")
    try:
        return CHANNELS[kind].model_validate({"kind": kind, **given})
    except ValidationError as error:
        raise ChannelError(f"channel {kind}: {located(error, given, CHANNELS[kind])}") from None


def play(channel: Channel, seed: int, steps: int) -> dict[str, Any]:
    """The first `steps` rate changes as one document; fewer where the channel ends, whose last rate then holds.

    Raises:
        ChannelError: a seed that numpy doesn't take, no steps or too many, or times beyond any number.
    """
    if not 0 <= seed < 2**32:
        raise ChannelError(f"seed {seed}: from 0 to {2**32 - 1}")
    if not 1 <= steps <= MAX_STEPS:
        raise ChannelError(f"steps {steps}: from 1 to {MAX_STEPS}")
    changes = list(islice(channel.play(seed), steps))
    if not math.isfinite(changes[-1].at_s):
        raise ChannelError(f"step {steps} is at no finite time; choose a smaller step_s")
    settings = channel.model_dump(mode="json")
    return {
        "kind": settings.pop("kind"),
        "seed": seed,
        "settings": settings,
        "rates_mbps": [change.mbps for change in changes],
        "at_s": [change.at_s for change in changes],
    }


def trace_lines(played: dict[str, Any]) -> list[str]:
    """The same as the lines of a trace file; to a microsecond and 0.1 kbit/s."""
    changes = zip(played["at_s"], played["rates_mbps"], strict=True)
    return ["t_s,mbps", *(f"{round(at_s, 6)},{round(mbps, 4)}" for at_s, mbps in changes)]


def show(console: Console, played: dict[str, Any]) -> None:
    """Print every change, and what there is to say about all."""
    rates = played["rates_mbps"]
    changes = zip(played["at_s"], rates, strict=True)
    console.print(Columns([f"{at_s:g} s: {mbps:.4g}" for at_s, mbps in changes], equal=True), highlight=False)
    console.print(
        f"{played['kind']}, seed {played['seed']}: {len(rates)} rates in Mbit/s, "
        f"mean {fmean(rates):.1f}, least {min(rates):.4g}, most {max(rates):.4g}.",
        highlight=False,
    )
