"""One allocation problem, one channel, without a run: `scout allocate` and `scout channel`, and the same in Python."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cluster.api.errors import InputError
from cluster.experiments import one_problem
from cluster.experiments.channel_preview import ChannelError, make_channel, play
from cluster.experiments.problem_file import load_problem


@dataclass(frozen=True)
class Allocation:
    """A policy's answer to one problem.

    Attributes:
        document: all of it, as `scout allocate --json` prints it.
    """

    document: dict[str, Any]

    @property
    def assignments(self) -> pd.DataFrame:
        """A row for each agent: mode, share in Mbit/s, latency in ms, whether it is in time, and if not, why."""
        return pd.DataFrame(self.document["assignments"]).set_index("agent")

    @property
    def deadlines_met(self) -> int:
        """How many agents are in time."""
        return int(self.document["deadlines_met"])

    def _repr_html_(self) -> str:
        return str(self.assignments.to_html(escape=True))


@dataclass(frozen=True)
class PlayedChannel:
    """The rates that a channel plays.

    Attributes:
        document: all of it, as `scout channel --json` prints it.
    """

    document: dict[str, Any]

    @property
    def rates(self) -> pd.DataFrame:
        """`t_s`, in seconds, and the rate from then on, `mbps`: the columns of a trace file."""
        return pd.DataFrame({"t_s": self.document["at_s"], "mbps": self.document["rates_mbps"]})

    def _repr_html_(self) -> str:
        return str(self.rates.to_html(escape=True, max_rows=20))


def allocate(problem: str | Path | Mapping[str, Any], policy: str | type = "deadline") -> Allocation:
    """Solve one allocation problem: each agent's mode and uplink share, and the agents whose deadline is infeasible.

    Args:
        problem: a file, the name of a problem that ships with Scout, or a mapping with a problem's keys.
        policy: an allocation policy's name, or its class.

    Raises:
        InputError: the problem is wrong, there is no such policy, or it can't serve these modes.
    """
    name = f"{policy.__module__}:{policy.__qualname__}" if isinstance(policy, type) else policy
    try:
        return Allocation(one_problem.allocate(load_problem(problem), name))
    except ValueError as error:  # an invalid document, an unknown policy, a mode that the problem lacks
        raise InputError(str(error)) from None


def channel(kind: str, *, seed: int = 42, steps: int = 20, settings: Mapping[str, Any] | None = None) -> PlayedChannel:
    """The bandwidth sequence that a channel plays.

    Args:
        kind: a channel (`markov`), a published 5G scenario (`urban_mmwave`) or a cell (`lte_driving`).
        seed: equal seeds play equal rates.
        steps: the number of rate changes.
        settings: as in scenarios.

    Raises:
        InputError: no such channel, or wrong settings, seed or steps.
    """
    try:
        return PlayedChannel(play(make_channel(kind, settings or {}), seed, steps))
    except ChannelError as error:
        raise InputError(str(error)) from None
