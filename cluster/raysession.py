"""Ray, as a run uses it: a cluster of its own or one that is there, actors on this node, errors in words."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# Actors exchange small messages only; payloads go over the link. Ray would reserve 30 % of the machine.
OBJECT_STORE_BYTES = 128 * 2**20


class RayUnavailable(RuntimeError):
    """Ray can't be started or reached; the message says what to do."""


@dataclass(frozen=True, slots=True)
class RaySession:
    """A connection to Ray, and what this node has free."""

    node_id: str
    cpus: float
    gpus: float

    def options(self, num_cpus: float, num_gpus: float = 0.0) -> dict[str, Any]:
        """Actor options: on this node, because sockets are handed over inside one machine only."""
        here = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        return {"num_cpus": num_cpus, "num_gpus": num_gpus, "scheduling_strategy": here}


def connect(address: str | None) -> RaySession:
    """Connect to Ray.

    Args:
        address: of a running cluster, or `auto`; None for RAY_ADDRESS if that is set (as it is inside a Ray job), else
            for a cluster of our own that ends with this process.

    Raises:
        RayUnavailable: with what to do about it.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    # Warns on every start that a future Ray won't hide GPUs from actors without any; ours ask for what they use.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        if address:
            ray.init(address=address, **common)
        else:
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **common)
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = ""
        if "token" in str(error).lower() or "auth" in str(error).lower():
            hint = "; the cluster wants a token: set RAY_AUTH_MODE=token here as where `ray start` ran"
        elif address:
            hint = "; is `ray start --head` running? Without --address and RAY_ADDRESS, scout starts its own Ray"
        raise RayUnavailable(f"Ray: {first_line}{hint}") from None
    node_id = ray.get_runtime_context().get_node_id()
    node = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == node_id)
    free = ray.available_resources()  # of the whole cluster: what others use on this node can't be told apart
    return RaySession(node_id, *(min(node.get(kind, 0.0), free.get(kind, 0.0)) for kind in ("CPU", "GPU")))
