"""The scenario of the small real models at the pace of this machine: the same experiment, in slow motion where need be.

A short measurement of two models says how much slower this machine is, under its present load, than the one that the
shipped profiles were measured on. All times of the scenario are stretched by that and by some slack, and the uplink's
rate is divided by it, so that compute, transfers and deadlines keep their proportions.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from cluster.scenario.shipped import scenarios
from kvcache.modes import parse_modes
from models.profiles import builtin_files

SHIPPED = "small-family"
EXAMPLES = 2
SLACK = 1.5  # edges and worker compute at the same time; the measurement has the machine to itself
MOST_STRETCH = 8.0
TURN_S = 20.0  # what a turn should last; never fewer than LEAST_ROUNDS
LEAST_ROUNDS = 2
MANY_CORES = 4  # of which all agents of the shipped scenario can be had
TIMES = ("edge_prefill_ms", "encode_ms", "cloud_prefill_ms", "decode_ms")


@dataclass(frozen=True)
class Pace:
    """How fast this machine runs the small models now.

    Attributes:
        slowdown: measured times over those of the shipped profile; 1 or more.
        cores: that this process may use.
    """

    slowdown: float
    cores: int

    @property
    def stretch(self) -> float:
        """What times are multiplied by."""
        return min(SLACK * self.slowdown, MOST_STRETCH)


def measure_pace() -> Pace:
    """Take the times of the smallest and the largest model of the family. Needs torch; takes seconds."""
    from models.datasets import load_examples
    from models.hf.device import use_device
    from models.hf.loading import ModelSpec, load_model
    from models.hf.measure import measure

    use_device(0)  # one core, as the actors of a live run
    edge, cloud = (load_model(ModelSpec(name, dtype="float32")) for name in ("family/tiny", "family/base"))
    modes = parse_modes("int8,prompt")
    shipped = _shipped_profiles()["tiny"]
    ratios = []
    for result in measure(load_examples("family", EXAMPLES), edge, cloud, modes):
        ratios.append(result.edge_prefill_ms / shipped["edge_prefill_ms"])
        for mode, found in result.modes.items():
            known = shipped["modes"][str(mode)]
            ratios.append((found.cloud_prefill_ms + found.decode_ms) / (known["cloud_prefill_ms"] + known["decode_ms"]))
    return Pace(max(1.0, median(ratios)), len(os.sched_getaffinity(0)))


def write_scenario(pace: Pace, folder: Path) -> Path:
    """Write the scenario and its profiles, stretched to this pace, into a folder; returns the scenario's path."""
    folder.mkdir(parents=True, exist_ok=True)
    profiles = _shipped_profiles()
    for profile in profiles.values():
        for costs in (profile, *profile["modes"].values()):
            costs |= {key: round(costs[key] * pace.slowdown, 4) for key in TIMES if key in costs}
    (folder / "profiles.yaml").write_text(yaml.safe_dump(profiles, sort_keys=False), encoding="utf-8")
    path = folder / "real-models.yaml"
    path.write_text(yaml.safe_dump(_stretched(pace), sort_keys=False), encoding="utf-8")
    return path


def _stretched(pace: Pace) -> dict[str, Any]:
    scenario = yaml.safe_load(scenarios()[SHIPPED].read_text(encoding="utf-8"))
    stretch = pace.stretch
    for group in scenario["agents"]["groups"]:
        group["profile"] = group["profile"].replace("family/", "profiles.yaml/")
        if pace.cores < MANY_CORES:
            group["count"] //= 2
    agents = sum(group["count"] for group in scenario["agents"]["groups"])
    for key in ("deadline_ms", "margin_ms"):
        scenario[key] = round(scenario[key] * stretch)
    scenario["lateness_limit_ms"] = round(50 * stretch)
    channel, arrivals = scenario["uplink"]["channel"], scenario["arrivals"]
    channel["mbps"] = round(channel["mbps"] / stretch, 3)
    arrivals["period_s"] = round(arrivals["period_s"] * stretch, 2)
    arrivals["rounds"] = min(arrivals["rounds"], max(LEAST_ROUNDS, int(TURN_S / arrivals["period_s"])))
    scenario["name"] = "real-models"
    scenario["description"] = (
        f"{agents} agents with real models, {channel['mbps']:g} Mbit/s, {scenario['deadline_ms']:g} ms deadline: "
        f"{SHIPPED} in slow motion, {stretch:.1f} times"
    )
    return scenario


def _shipped_profiles() -> dict[str, Any]:
    profiles: dict[str, Any] = yaml.safe_load(builtin_files()["family"].read_text(encoding="utf-8"))
    return profiles
