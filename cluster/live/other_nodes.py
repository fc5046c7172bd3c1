"""The nodes of a run beside the station, as the driver has them: examined before the run, accounted for after it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from agents.host import AgentHost
from cloud.sockets import Accept
from cluster.live import elsewhere
from cluster.live.elsewhere import HEADROOM, Examined, Membership
from cluster.live.nodes import Layout, Node
from cluster.live.placement import Spot
from cluster.live.ray_session import RaySession
from cluster.scenario.schema import Scenario
from netem.helper.session import LinkUnavailable
from netem.relay.session import RelaySession
from reports.schema import NodeUse

READY_S = 90.0
EXAMINE_S = 60.0


class NetworkTooSlow(LinkUnavailable):
    """The network underneath can't carry the emulated link; the message holds what was measured."""


@ray.remote(num_cpus=0, max_retries=0)
def _versions() -> dict[str, str]:
    return elsewhere.versions()


@ray.remote(num_cpus=0, max_retries=0)
def _examine(member: Membership) -> Examined:
    return asyncio.run(elsewhere.examine(member))


class OtherNodes:
    """The nodes of a run beside the station, as the driver has them."""

    def __init__(self, scenario: Scenario, layout: Layout, session: RaySession, relay: RelaySession) -> None:
        self._scenario = scenario
        self._layout = layout
        self._session = session
        self._relay_session, self._relay = relay, relay.address
        self._peak_mbps = scenario.peak_mbps
        self._examined: dict[str, Examined] = {}

    @property
    def relay_pid(self) -> int:
        """The relay's process, on this node."""
        return self._relay_session.pid

    async def ask_relay(self) -> None:
        """Get an answer from the relay. Raises OSError."""
        await self._relay.status()

    def restart_relay(self) -> None:
        """See `RelaySession.restart`."""
        self._relay_session.restart()

    def name_of(self, node_id: str) -> str:
        """A node as messages name it."""
        return str(self._layout.nodes[node_id])

    def is_remote(self, spot: Spot) -> bool:
        """Whether an actor at this spot takes part by the relay."""
        return spot.node_id is not None and spot.node_id != self._layout.station.node_id

    def listen(self, worker: int) -> Callable[[], Awaitable[Accept]]:
        """What a worker elsewhere listens by."""
        return partial(elsewhere.listen, self._member("worker", worker, self._layout.worker(worker)), worker)

    def open_host(self, number: int) -> Callable[[], Awaitable[AgentHost]]:
        """What makes a host elsewhere."""
        member = self._member("host", number, self._layout.host(number))
        return partial(elsewhere.open_host, self._scenario, self._scenario.hosts[number], member)

    def _member(self, kind: str, number: int, spot: Spot) -> Membership:
        node = self._layout.nodes[spot.node_id or ""]
        probes = (kind, number) == self._layout.probes(node.node_id)
        return Membership(self._relay, node.address, self._peak_mbps, probes)

    def examine(self) -> None:
        """Check every node: that it has this version of the project, and that the network to it is fast enough.

        Raises:
            LinkUnavailable: a node won't do; the message names it.
        """
        nodes = self._layout.remote()
        asked = [_versions.options(scheduling_strategy=self._session.on(node.node_id)).remote() for node in nodes]
        own = elsewhere.versions()
        for node, answer in zip(nodes, asked, strict=True):
            found = _answer(node, answer, READY_S)
            if found != own:
                said = " and ".join(", ".join(f"{name} {text}" for name, text in each.items()) for each in (found, own))
                raise LinkUnavailable(f"node {node}: another version than here: {said}")
        for node in nodes:
            self._measure(node)

    def found(self) -> Iterator[str]:
        """What was measured of the network to each node, in lines."""
        for node in self._layout.remote():
            if seen := self._examined.get(node.address):
                yield (
                    f"node {node}: {seen.up_mbps:,.0f} Mbit/s up and {seen.down_mbps:,.0f} down to the station, round "
                    f"trip {seen.round_trip_ms:.2f} ms"
                )

    def _measure(self, node: Node) -> None:
        member = Membership(self._relay, node.address, self._peak_mbps)
        asked = _examine.options(scheduling_strategy=self._session.on(node.node_id)).remote(member)
        found: Examined = _answer(node, asked, EXAMINE_S)
        self._examined[node.address] = found
        needed_mbps = HEADROOM * self._peak_mbps
        assert self._scenario.cluster is not None
        if self._scenario.cluster.verify and min(found.up_mbps, found.down_mbps) < needed_mbps:
            raise NetworkTooSlow(
                f"node {node}: the network between it and the station {self._layout.station} carries "
                f"{found.up_mbps:.3g} Mbit/s up and {found.down_mbps:.3g} down; the emulated link has up to "
                f"{self._peak_mbps:g} and needs {HEADROOM:g} times that underneath: use a faster network or a slower "
                "channel, or `cluster.verify: false`"
            )

    async def account(self) -> tuple[list[NodeUse], dict[str, int]]:
        """What is known of every node, and what the relay counted."""
        try:
            status = await self._relay.status()
        except OSError as error:
            return [], {f"lost: {error}": 1}
        return [self._use_of(node, status["reports"]) for node in self._layout.remote()], status["counts"]

    def _use_of(self, node: Node, reports: Sequence[dict[str, Any]]) -> NodeUse:
        own = [report for report in reports if report.get("node") == node.address]
        before = self._examined.get(node.address)

        def worst(key: str, of: Callable[..., float] = max) -> float | None:
            return of(found) if (found := [report[key] for report in own if report.get(key) is not None]) else None

        spots = [spot.node_id for spot in self._layout.hosts], [spot.node_id for spot in self._layout.workers]
        return NodeUse(
            address=node.address,
            hostname=node.hostname,
            hosts=spots[0].count(node.node_id),
            workers=spots[1].count(node.node_id),
            up_mbps=round(before.up_mbps, 1) if before else None,
            down_mbps=round(before.down_mbps, 1) if before else None,
            round_trip_ms=round(before.round_trip_ms, 3) if before else None,
            least_mbps=worst("least_mbps", min),
            most_round_trip_ms=worst("round_trip_ms"),
            clock_error_ms=worst("clock_error_ms"),
            clock_uncertainty_ms=worst("clock_uncertainty_ms"),
            stolen=worst("stolen") or 0.0,
            slow=next((report["slow"] for report in own if report.get("slow")), ""),
        )


def _answer(node: Node, asked: Any, timeout_s: float) -> Any:
    """What a node answers. Raises LinkUnavailable, naming it."""
    try:
        return ray.get(asked, timeout=timeout_s)
    except GetTimeoutError:
        raise LinkUnavailable(f"node {node}: no answer within {timeout_s:g} s") from None
    except (RayError, OSError, ImportError) as error:
        cause = getattr(error, "cause", None) or error
        said = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
        if "No module named" in said:
            said += "; install the project there as here, or start the run as a job (`scout submit`)"
        raise LinkUnavailable(f"node {node}: {said}") from None
