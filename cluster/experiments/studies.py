"""Studies on virtual time: variations of scenarios that ship with the project, each answering one question."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.run_folder.ledger import assemble
from cluster.scenario.schema import Scenario
from cluster.scenario.shipped import scenarios
from cluster.scenario.yaml_document import Document
from cluster.simulated.engine import SimulatedEngine
from kvcache.modes import LOCAL, parse_mode
from netem.channels.ar1 import PUBLISHED as PUBLISHED_5G
from reports import metrics
from reports.machine import describe_machine
from reports.schema import Machine

PROMPT_VS_CACHE_RATES_MBPS = (25, 50, 100, 200, 400, 800)
PROMPT_VS_CACHE_LOADS = (0.8, 1.0, 1.2, 1.4)
# Cloud prefill and decode of the prompt mode, as in configs/profiles/journal.yaml.
PROMPT_MS = 57 + 167


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One allocator on one channel (and at one load, where the study varies it); all but `requests` are means."""

    channel: str
    load: float | None
    allocator: str
    requests: int
    compliance: float
    delivered_quality: float
    credited_quality: float
    caches: float
    local: float
    from_hedge: float


@dataclass(frozen=True, slots=True)
class Study:
    """A study's rows, one for each allocator of each scenario."""

    study: str
    machine: Machine
    rows: list[StudyRow]


def study_5g(quick: bool = False) -> Study:
    """Hedging on the published 5G channels at a 2 s deadline, compared with no hedging and with clairvoyance."""
    document = Document.read(scenarios()["5g"])
    rows: list[StudyRow] = []
    for channel in PUBLISHED_5G:
        data = document.data
        uplink = data["uplink"] | {"channel": data["uplink"]["channel"] | {"scenario": channel}}
        arrivals = data["arrivals"] | ({"rounds": 100} if quick else {})
        rows += _run(data | {"uplink": uplink, "arrivals": arrivals}, channel)
    return Study("5g", describe_machine(), rows)


def study_prompt_vs_cache(quick: bool = False) -> Study:
    """Prompts, caches or both, by channel and load: when saving the cloud a prefill is worth a cache's bandwidth.

    The load is the cloud workers' utilization if every request were sent as a prompt.
    """
    document = Document.read(scenarios()["prompt-vs-cache"])
    data = document.data
    channels: list[dict[str, Any]] = [{"kind": "constant", "mbps": mbps} for mbps in PROMPT_VS_CACHE_RATES_MBPS]
    channels += [{"kind": "ar1", "scenario": name, "step_s": 1} for name in PUBLISHED_5G]
    if quick:
        channels = channels[-6:-3]
    agents = sum(group["count"] for group in data["agents"]["groups"])
    rows: list[StudyRow] = []
    for channel in channels:
        for load in PROMPT_VS_CACHE_LOADS[1:3] if quick else PROMPT_VS_CACHE_LOADS:
            rate_per_s = load * data["cloud"]["workers"] / (PROMPT_MS / 1e3) / agents
            varied = data | {
                "uplink": data["uplink"] | {"channel": channel},
                "arrivals": data["arrivals"] | {"rate_per_s": rate_per_s, "duration_s": 20 if quick else 100},
            }
            name = channel.get("scenario") or f"{channel['mbps']} Mbit/s"
            rows += _run(varied, name, load)
    return Study("prompt_vs_cache", describe_machine(), rows)


STUDIES = {"5g": study_5g, "prompt_vs_cache": study_prompt_vs_cache}


def _run(data: dict[str, Any], channel: str, load: float | None = None) -> Iterator[StudyRow]:
    """A row for each allocator of a scenario."""
    scenario = Scenario.model_validate(data)
    ledger = assemble(SimulatedEngine(scenario).run().turns, scenario, "its record was lost")
    for name, rows in ledger.groupby("allocator", sort=False):
        modes = rows["mode"].map(lambda text: parse_mode(text) if text else None)
        yield StudyRow(
            channel=channel,
            load=load,
            allocator=str(name),
            requests=len(rows),
            compliance=metrics.compliance(rows),
            delivered_quality=metrics.delivered_quality(rows),
            credited_quality=metrics.credited_quality(rows),
            caches=float(modes.map(lambda mode: mode is not None and mode.is_cache).mean()),
            local=float(modes.map(lambda mode: mode == LOCAL).mean()),
            from_hedge=float(((rows.hedge != "") & (rows.answered == rows.hedge)).mean()),
        )


def study_table(found: Study) -> Table:
    """A table with one line for each channel (and load), and one column for each allocator."""
    table = Table(
        title=f"{found.study}: delivered quality (met), simulated, {found.machine.started[:10]}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    with_load = any(row.load is not None for row in found.rows)
    table.add_column("channel")
    if with_load:
        table.add_column("load")
    allocators = list(dict.fromkeys(row.allocator for row in found.rows))
    for allocator in allocators:
        table.add_column(allocator, justify="right")
    lines: dict[tuple[str, ...], dict[str, StudyRow]] = {}
    for row in found.rows:
        lines.setdefault((row.channel, str(row.load)) if with_load else (row.channel,), {})[row.allocator] = row
    for line, by_allocator in lines.items():
        cells = [by_allocator[allocator] for allocator in allocators]
        table.add_row(*line, *(f"{c.delivered_quality:.1f} ({c.compliance:.1%})" for c in cells))
    return table
