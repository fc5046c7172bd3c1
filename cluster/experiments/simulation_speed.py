"""How fast the simulated engine is on this machine."""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.run_folder.ledger import assemble
from cluster.scenario.schema import Scenario
from cluster.simulated.engine import SimulatedEngine
from reports import metrics

# (agents, requests, allocators): 64 agents for speed, others for size. `deadline` looks at all that is in flight with
# every request, so it gets fewer of them.
SIZES = (
    (64, 40_000, ("equal", "model_aware")),
    (64, 4_000, ("deadline",)),
    (1_000, 20_000, ("equal", "model_aware")),
    (1_000, 2_000, ("deadline",)),
    (10_000, 20_000, ("equal", "model_aware")),
)
QUICK_SIZES = ((64, 2_000, ("equal", "model_aware", "deadline")),)


def scenario_of(agents: int, requests: int) -> Scenario:
    """Agents that ask once in two seconds each on average, on an uplink where a bit more than half would be caches."""
    return Scenario.model_validate(
        {
            "name": f"bench-{agents}",
            "deadline_ms": 5000,
            "uplink": {"channel": {"kind": "constant", "mbps": min(10.0 * agents, 10_000)}},
            "arrivals": {"kind": "poisson", "rate_per_s": 0.5, "duration_s": requests / agents / 0.5},
            "agents": {"groups": [{"profile": "measured/qwen2.5-7b", "count": agents}]},
            "cloud": {"workers": min(64, max(1, agents // 4)), "queue_limit": 10_000},
        }
    )


@dataclass(frozen=True, slots=True)
class SimulationSpeed:
    """One allocator's simulated turn: virtual and real time, and requests per second, ledger included."""

    agents: int
    allocator: str
    requests: int
    virtual_s: float
    wall_s: float
    requests_per_s: int
    requests_per_cpu_s: int
    solve_share: float
    compliance: float
    peak_mb: int


def bench_simulate(quick: bool, progress: Callable[[str], None]) -> list[SimulationSpeed]:
    """Requests simulated per second of one core, ledger included.

    Args:
        quick: a few seconds' worth.
        progress: is told what is being measured.
    """
    runs = []
    for agents, requests, allocators in QUICK_SIZES if quick else SIZES:
        scenario = scenario_of(agents, requests)
        for allocator in allocators:
            progress(f"{agents} agents, {requests} requests, {allocator}")
            alone = Scenario.model_validate(scenario.model_dump() | {"allocators": [allocator]})
            runs.append(_measure(alone, agents, allocator))
    return runs


def _measure(scenario: Scenario, agents: int, allocator: str) -> SimulationSpeed:
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    result = SimulatedEngine(scenario).run()
    ledger = assemble(result.turns, scenario, "its record was lost")
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return SimulationSpeed(
        agents=agents,
        allocator=allocator,
        requests=len(ledger),
        virtual_s=round(float((ledger.intended_s + ledger.latency_ms.fillna(0) / 1e3).max()), 1),
        wall_s=round(wall_s, 2),
        requests_per_s=round(len(ledger) / wall_s),
        requests_per_cpu_s=round(len(ledger) / cpu_s),
        solve_share=round(sum(result.turns[0].solve_ms) / 1e3 / wall_s, 3),
        compliance=round(metrics.compliance(ledger), 4),
        peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    )


def simulate_table(runs: Sequence[SimulationSpeed], machine: str) -> Table:
    """The result of `bench_simulate` on a machine as a table."""
    table = Table(
        title=f"simulated engine, one core; {machine}",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    columns = {
        "agents": "agents",
        "allocator": "allocator",
        "requests": "requests",
        "virtual_s": "virtual s",
        "wall_s": "wall s",
        "requests_per_s": "requests/s",
        "requests_per_cpu_s": "per CPU s",
        "solve_share": "solving",
        "compliance": "met",
        "peak_mb": "peak MB",
    }
    for title in columns.values():
        table.add_column(title, justify="left" if title == "allocator" else "right")
    for run in runs:
        shown = asdict(run) | {"solve_share": f"{run.solve_share:.0%}", "compliance": f"{run.compliance:.1%}"}
        table.add_row(*(str(shown[key]) for key in columns))
    return table
