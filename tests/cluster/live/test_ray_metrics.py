"""A live run on a cluster with metrics: what Prometheus would find there, and what the dashboard file asks it for."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.live.ray_metrics import GAUGES
from tests.support.commands import ENVIRONMENT, REPOSITORY, started

Write = Callable[..., Path]
DASHBOARD = REPOSITORY / "docs" / "grafana.json"
FIND_PORT = """
import ray
ray.init("{address}", logging_level="ERROR", log_to_driver=False)
print("port", ray.nodes()[0]["MetricsExportPort"])
"""


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


def test_prometheus_finds_requests_uplink_and_grants(ray_head: str, scenario: Write, tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", FIND_PORT.format(address=ray_head)],
        capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=90,
    )  # fmt: skip
    port = int(found.stdout.partition("port")[2] or 0)
    if not port:
        pytest.skip(f"Ray exports no metrics here: {found.stderr[-300:]}")
    path = scenario(allocators=["deadline"], arrivals={"kind": "poisson", "rate_per_s": 1.5, "duration_s": 10})
    often = ENVIRONMENT | {"RAY_metrics_report_interval_ms": "1000"}
    process = started("run", path, "--out", tmp_path / "run", "--address", ray_head, environment=often, stdout=None)
    wanted = {
        *GAUGES,
        "scout_grant_mbps",
        "scout_requests",
        "scout_wire_bytes",
        "scout_latency_ms",
        "scout_lateness_ms",
    }
    seen: set[str] = set()
    until_s = time.monotonic() + 90
    while not wanted <= seen and time.monotonic() < until_s:
        seen |= {
            re.sub("_(total|bucket|sum|count)$", "", n) for n in re.findall(r"^ray_(scout_\w+)\{", scraped(port), re.M)
        }
        time.sleep(0.5)
    assert process.wait(60) == 0
    assert wanted <= seen


def test_the_grafana_file_asks_for_what_there_is() -> None:
    document = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in document["panels"] for target in panel.get("targets", [])]
    asked = {name for text in expressions for name in re.findall(r"ray_(scout_\w+)", text)}
    asked = {re.sub("_(total|bucket|sum|count)$", "", name) for name in asked}
    known = {*GAUGES, "scout_grant_mbps", "scout_requests", "scout_wire_bytes", "scout_latency_ms", "scout_lateness_ms"}
    known |= {"scout_quality_delivered"}
    assert asked <= known and set(GAUGES) <= asked
