"""Scout from Python: `scout.run("congestion", engine="simulated")`. What is here is described in docs/python.md.

Names are imported when they are first used, so that `import scout` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.api.comparisons import compare
    from cluster.api.errors import InputError, Interrupted, ScoutError, UnavailableError
    from cluster.api.problems import Allocation, PlayedChannel, allocate, channel
    from cluster.api.results import ComparisonResults, RunResults, load
    from cluster.api.runs import run
    from cluster.scenario.schema import (
        AgentGroup,
        AgentsSettings,
        AllocatorSettings,
        CloudSettings,
        Scenario,
        TransportSettings,
        UplinkSettings,
    )

_HOMES = {
    "cluster.api.comparisons": ("compare",),
    "cluster.api.errors": ("InputError", "Interrupted", "ScoutError", "UnavailableError"),
    "cluster.api.problems": ("Allocation", "PlayedChannel", "allocate", "channel"),
    "cluster.api.results": ("ComparisonResults", "RunResults", "load"),
    "cluster.api.runs": ("run",),
    "cluster.scenario.schema": (
        "AgentGroup",
        "AgentsSettings",
        "AllocatorSettings",
        "CloudSettings",
        "Scenario",
        "TransportSettings",
        "UplinkSettings",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AgentGroup",
    "AgentsSettings",
    "Allocation",
    "AllocatorSettings",
    "CloudSettings",
    "ComparisonResults",
    "InputError",
    "Interrupted",
    "PlayedChannel",
    "RunResults",
    "Scenario",
    "ScoutError",
    "TransportSettings",
    "UnavailableError",
    "UplinkSettings",
    "allocate",
    "channel",
    "compare",
    "load",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'scout' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = found = getattr(importlib.import_module(_HOME_OF[name]), name)
    return found


def __dir__() -> list[str]:
    return list(__all__)
