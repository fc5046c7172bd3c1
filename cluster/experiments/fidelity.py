"""The same scenario live and simulated, side by side."""

from pathlib import Path
from typing import Any

import pandas as pd

from cluster.run_folder import folder as run_folder
from cluster.run_folder.ledger import LEDGER_FILE
from cluster.scenario.schema import Scenario
from cluster.simulated.engine import run_simulated
from reports.fidelity import compare

LIVE_FOLDER = "live"
AGAIN_FOLDER = "live-again"
SIMULATED_FOLDER = "simulated"
FIDELITY_FILE = "fidelity.json"


def against_live(
    out: Path, live: dict[str, Any], scenario: Scenario, again: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Simulate a scenario that has run live, and compare; the document is also written to `out`.

    What asking the allocator takes is the machine's, not the scenario's: the simulation takes the live run's median.

    Args:
        live: the summary of the live run.
        again: that of a second live run, for what one live run is from another.

    Raises:
        RunFolderError: `out` has a simulated run already.
    """
    simulated_dir = run_folder.create(out / SIMULATED_FOLDER, scenario)
    ledger = Path(live["run_dir"]) / LEDGER_FILE
    asked = pd.read_parquet(ledger, columns=["allocator", "allocate_ms"]).query("allocate_ms > 0")
    medians = asked.groupby("allocator", sort=False).allocate_ms.median()
    ask_ms = {str(name): round(float(ms), 2) for name, ms in medians.items()}
    simulated = run_simulated(scenario, simulated_dir, ask_ms)
    runs = [live, simulated] + ([again] if again else [])
    document = {
        "title": f"{scenario.name}: simulated against live",
        "scenario": scenario.name,
        "partial": any(run["partial"] for run in runs),
        "valid": all(run["valid"] for run in runs),
        "warnings": [warning for run in runs if run is not simulated for warning in run["warnings"]],
        "ask_ms": ask_ms,
        "allocators": compare(ledger, simulated_dir / LEDGER_FILE),
        "live_again": compare(ledger, Path(again["run_dir"]) / LEDGER_FILE) if again else {},
        "live": live,
        "simulated": simulated,
        "footnote": f"{live['footnote'].partition(';')[0]}; {simulated['footnote'].partition(',')[0]}",
    }
    run_folder.write_json(out / FIDELITY_FILE, document)
    return document
