"""Whether a scenario's actors fit on this node; checked before the start, because Ray would wait for ever."""

from dataclasses import dataclass

from cluster.scenario.schema import Scenario

ALLOCATOR_CPUS = 0.1


class PlacementError(ValueError):
    """The actors don't fit; the message names the scenario's key, the demand and the available resources."""


@dataclass(frozen=True, slots=True)
class Spot:
    """What an actor requests from Ray, and on which node; None: this one."""

    cpus: float
    gpus: float
    node_id: str | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """The resources that each actor requests from Ray, all on this node, and a notice for the user."""

    hosts: int
    agent_cpus: float
    agent_gpus: float
    worker_cpus: float
    worker_gpus: float
    notice: str | None = None

    def host(self, number: int) -> Spot:
        """Where a host is."""
        return Spot(self.agent_cpus, self.agent_gpus)

    def worker(self, number: int) -> Spot:
        """Where a worker is."""
        return Spot(self.worker_cpus, self.worker_gpus)


def place(scenario: Scenario, cpus: float, gpus: float, gpus_in_all: float) -> Placement:
    """Decide the actors' resource requests on a node with `cpus` and `gpus` free, of `gpus_in_all` GPUs.

    On a node without GPUs, agents and workers run on their CPU fractions.

    Raises:
        PlacementError: the actors don't fit.
    """
    agents, cloud = scenario.agents, scenario.cloud
    hosts = len(scenario.hosts)
    asked_cpus = hosts * agents.num_cpus + cloud.workers * cloud.num_cpus + ALLOCATOR_CPUS
    if asked_cpus > cpus + 1e-6:
        raise PlacementError(
            f"the scenario asks {asked_cpus:g} CPUs and this node has {cpus:g} free: {hosts} agent actors x "
            f"agents.num_cpus {agents.num_cpus:g} + {cloud.workers} workers x cloud.num_cpus {cloud.num_cpus:g} + "
            f"{ALLOCATOR_CPUS:g}; lower them, or raise agents.per_actor"
        )
    if gpus_in_all == 0:
        asks = agents.num_gpus or cloud.num_gpus
        notice = "no GPU here: agents and workers run on their num_cpus" if asks else None
        return Placement(hosts, agents.num_cpus, 0.0, cloud.num_cpus, 0.0, notice)
    asked = [agents.num_gpus] * hosts + [cloud.num_gpus] * cloud.workers
    if not fits_on_gpus(asked, int(gpus)):
        raise PlacementError(
            f"the scenario's actors don't fit on the {int(gpus)} of {int(gpus_in_all)} GPU(s) that are free: "
            f"{hosts} agent actors x agents.num_gpus {agents.num_gpus:g} + "
            f"{cloud.workers} workers x cloud.num_gpus {cloud.num_gpus:g} "
            f"(a fraction stays on one GPU); lower them, or raise agents.per_actor"
        )
    return Placement(hosts, agents.num_cpus, agents.num_gpus, cloud.num_cpus, cloud.num_gpus)


def fits_on_gpus(asked: list[float], gpus: int) -> bool:
    """Whether requests fit on `gpus` GPUs: a fraction stays on one GPU, integers take whole ones (first fit)."""
    free = [1.0] * gpus
    for amount in sorted(asked, reverse=True):
        if amount >= 1:
            whole = [i for i, left in enumerate(free) if left == 1.0][: int(amount)]
            if len(whole) < amount:
                return False
            for i in whole:
                free[i] = 0.0
        elif amount > 0:
            # 1e-6: Ray counts fractions in units of 1/10000, so ten times 0.1 is exactly one GPU.
            fitting = [i for i, left in enumerate(free) if left >= amount - 1e-6]
            if not fitting:
                return False
            free[fitting[0]] -= amount
    return True
