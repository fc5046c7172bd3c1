"""Which Ray node each actor of a run over several nodes is on; checked before anything starts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.live.placement import ALLOCATOR_CPUS, PlacementError, Spot, fits_on_gpus
from cluster.scenario.placing import NodeSettings
from cluster.scenario.schema import Scenario


@dataclass(frozen=True, slots=True)
class Node:
    """A Ray node: what it has, and what of it is free."""

    node_id: str
    address: str
    hostname: str
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.address} ({self.hostname})"


@dataclass(frozen=True, slots=True)
class Layout:
    """The spot of every host and worker; those that aren't on the station take part by the relay."""

    station: Node
    hosts: Sequence[Spot]
    workers: Sequence[Spot]
    nodes: Mapping[str, Node]  # by id
    notice: str | None = None

    def host(self, number: int) -> Spot:
        """See `placement.Placement`, also for `worker`."""
        return self.hosts[number]

    def worker(self, number: int) -> Spot:
        return self.workers[number]

    def remote(self) -> list[Node]:
        """The nodes beside the station that have an actor."""
        used = dict.fromkeys(spot.node_id or self.station.node_id for spot in [*self.hosts, *self.workers])
        return [self.nodes[node_id] for node_id in used if node_id != self.station.node_id]

    def probes(self, node_id: str) -> tuple[str, int]:
        """The one actor of a node that measures the network to it: ("host" or "worker", number)."""
        for kind, spots in (("worker", self.workers), ("host", self.hosts)):
            for number, spot in enumerate(spots):
                if spot.node_id == node_id:
                    return kind, number
        raise KeyError(node_id)


class _Room:
    """What is left of a node while actors are given their places."""

    def __init__(self, node: Node, gpus: int | None) -> None:
        self.node = node
        self.cpus = node.free.get("CPU", 0.0)
        has = int(node.free.get("GPU", 0.0))
        self.gpus = has if gpus is None else min(has, gpus)
        self.has_gpus = node.resources.get("GPU", 0.0) > 0
        self._taken: list[float] = []

    def lacks(self, cpus: float, gpus: float) -> str | None:
        """Why an actor has no room here."""
        if cpus > self.cpus + 1e-6:
            return f"{self.node} has {self.cpus:.3g} of {self.node.resources.get('CPU', 0.0):g} CPUs left"
        if self.has_gpus and not fits_on_gpus([*self._taken, gpus], self.gpus):
            return f"{self.node} has no room on its {self.gpus} GPU(s) for {gpus:g} more"
        return None

    def take(self, cpus: float, gpus: float) -> Spot:
        self.cpus -= cpus
        gpus = gpus if self.has_gpus else 0.0
        self._taken.append(gpus)
        return Spot(cpus, gpus, self.node.node_id)


def lay_out(scenario: Scenario, nodes: Sequence[Node], here: str) -> Layout:
    """Give every actor a node: of those of its kind, the one with the most CPUs left.

    Args:
        nodes: all that are alive.
        here: the id of this process's own.

    Raises:
        PlacementError: a kind of nodes isn't there, or has no room; the message names the node and what it lacks.
    """
    settings = scenario.cluster
    assert settings is not None
    station = next(node for node in nodes if node.node_id == here)
    if settings.station is not None and (lack := _lack(settings.nodes[settings.station], station)):
        raise PlacementError(
            f"cluster.station: the run was started on {station}, which is no node of {settings.station!r}: {lack}. "
            "Start it there; `scout submit` does"
        )
    rooms: dict[str, _Room] = {}
    kinds: dict[str | None, list[_Room]] = {None: [rooms.setdefault(here, _Room(station, None))]}
    for name in dict.fromkeys([group.node for group in scenario.agents.groups] + [scenario.cloud.node]):
        if name is not None:
            kind = settings.nodes[name]
            kinds[name] = [
                rooms.setdefault(node.node_id, _Room(node, kind.gpus)) for node in _of_kind(name, kind, nodes)
            ]
    kinds[None][0].take(ALLOCATOR_CPUS, 0.0)
    cloud, agents = scenario.cloud, scenario.agents
    workers = [
        _seat(kinds[cloud.node], f"worker {number}", "cloud", cloud.num_cpus, cloud.num_gpus)
        for number in range(cloud.workers)
    ]
    hosts = [
        _seat(kinds[scenario.node_of(own.start)], _named(own), "agents", agents.num_cpus, agents.num_gpus)
        for own in scenario.hosts
    ]
    without = [str(room.node) for room in rooms.values() if not room.has_gpus]
    asks = agents.num_gpus or cloud.num_gpus
    notice = f"no GPU on {', '.join(without)}: actors there run on their num_cpus" if asks and without else None
    return Layout(station, hosts, workers, {node.node_id: node for node in nodes}, notice)


def _named(agents: range) -> str:
    return f"agent {agents.start}" if len(agents) == 1 else f"agents {agents.start} to {agents.stop - 1}"


def _seat(rooms: Sequence[_Room], who: str, key: str, cpus: float, gpus: float) -> Spot:
    best = None
    for room in rooms:
        if room.lacks(cpus, gpus) is None and (best is None or room.cpus > best.cpus + 1e-6):
            best = room
    if best is None:
        lacks = "; ".join(room.lacks(cpus, gpus) or "" for room in rooms)
        asked = f"{key}.num_cpus {cpus:g}" + (f", {key}.num_gpus {gpus:g}" if gpus else "")
        raise PlacementError(f"{who} ({asked}) has no room: {lacks}; lower them, or raise per_actor")
    return best.take(cpus, gpus)


def _of_kind(name: str, kind: NodeSettings, nodes: Sequence[Node]) -> list[Node]:
    """The nodes that a scenario means. Raises PlacementError."""
    found = sorted((node for node in nodes if _lack(kind, node) is None), key=lambda node: node.address)
    if len(found) < (kind.count or 1):
        wanted = "no node" if not found else f"{len(found)} of {kind.count} nodes"
        raise PlacementError(
            f"cluster.nodes.{name}: {wanted} of the cluster will do: {'; '.join(_reasons(kind, nodes, found))}"
        )
    return found[: kind.count]


def _reasons(kind: NodeSettings, nodes: Sequence[Node], found: Sequence[Node]) -> Iterator[str]:
    for node in sorted(nodes, key=lambda node: node.address):
        if node not in found:
            yield f"{node} lacks {_lack(kind, node)}"


def _lack(kind: NodeSettings, node: Node) -> str | None:
    if lack := kind.lacks(node.address, node.labels, node.resources):
        return lack
    if kind.gpus and node.resources.get("GPU", 0.0) < kind.gpus:
        return f"{kind.gpus} GPU(s): it has {node.resources.get('GPU', 0.0):g}"
    return None
