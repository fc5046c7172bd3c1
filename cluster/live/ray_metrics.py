"""A live run as Ray metrics, for whoever has Prometheus and Grafana beside their cluster (docs/live.md).

Requests are counted where agents end them (`agents.actor`); here is what the driver sees five times a second.
"""

from ray.util.metrics import Gauge

from cluster.run_folder.timeline import Moment

GAUGES = {
    "scout_channel_mbps": "true rate of the uplink, link-layer Mbit/s",
    "scout_estimate_mbps": "what the allocator believes of it",
    "scout_used_mbps": "what went through it, mean of the last 0.2 s",
    "scout_in_flight": "requests on the uplink",
    "scout_waiting": "requests announced and not decided yet",
    "scout_cloud_queue_ms": "work promised to the workers, all together",
}


class UplinkMetrics:
    """Gauges of one turn, tagged with scenario and allocator; grants with the agent as well."""

    def __init__(self, scenario: str, allocator: str) -> None:
        self._tags = {"scenario": scenario, "allocator": allocator}
        self._gauges = {name: Gauge(name, text, tuple(self._tags)) for name, text in GAUGES.items()}
        self._grants = Gauge("scout_grant_mbps", "an agent's share while it sends, else 0", (*self._tags, "agent"))

    def show(self, moment: Moment) -> None:
        """Set every gauge."""
        values = (
            moment.channel_mbps,
            moment.estimate_mbps,
            moment.used_mbps,
            moment.in_flight,
            moment.waiting,
            sum(moment.cloud_ms),
        )
        for gauge, value in zip(self._gauges.values(), values, strict=True):
            gauge.set(value, self._tags)
        for agent, mbps in enumerate(moment.grants_mbps):
            self._grants.set(mbps, self._tags | {"agent": str(agent)})
