"""Where a scenario's parts are in a Ray cluster: kinds of nodes, and which of them is the station."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from configs.settings import Settings

NODE_NAME = r"^[A-Za-z0-9_-]{1,64}$"


class NodeSettings(Settings):
    """Ray nodes that have all of this; without any of it, every node."""

    labels: dict[str, str] = Field(default={}, description="Ray labels that a node has, as `ray start --labels` gave")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="custom resources that a node has at least so much of; they aren't used up"
    )
    address: str | None = Field(default=None, max_length=100, description="a node's address, as Ray shows it")
    count: int | None = Field(
        default=None, ge=1, le=1000, description="how many such nodes there must be, and are used; default: all"
    )
    gpus: int | None = Field(
        default=None, ge=0, le=1024, description="GPUs that each must have, and are used; default: those that are free"
    )

    def lacks(self, address: str, labels: Mapping[str, str], resources: Mapping[str, float]) -> str | None:
        """What a node lacks to be one of these, in words; None: nothing."""
        if self.address is not None and address != self.address:
            return f"its address isn't {self.address}"
        for key, value in self.labels.items():
            if labels.get(key) != value:
                has = f"{key}={labels[key]}" if key in labels else f"no label {key}"
                return f"label {key}={value}: it has {has}"
        for key, amount in self.resources.items():
            if resources.get(key, 0.0) < amount:
                return f"{amount:g} of resource {key}: it has {resources.get(key, 0.0):g}"
        return None


class ClusterSettings(Settings):
    """A run over several Ray nodes. The station is the node where the run is started: it has the whole link."""

    nodes: dict[Annotated[str, Field(pattern=NODE_NAME)], NodeSettings] = Field(
        min_length=1, description="kinds of nodes, by a name for `node` of agents.groups and cloud"
    )
    station: str | None = Field(
        default=None, description="the kind of node that the run must be started on; default: any"
    )
    port: int | None = Field(
        default=None, ge=1, le=65_535, description="of the station's relay, for firewalls; default: one that is free"
    )
    verify: bool = Field(
        default=True, description="whether the network between nodes is measured, and must have twice the uplink's peak"
    )

    def problem_of(self, node: Any) -> str | None:
        """Why nothing can be placed on the kind of nodes of this name."""
        if node is None or node in self.nodes:
            return None
        return f"no kind of nodes {node!r} in cluster.nodes; there are {', '.join(self.nodes)}"
