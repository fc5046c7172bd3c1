"""The same scenario live and simulated, side by side."""

from pathlib import Path
from typing import Any

from cluster import runfolder
from cluster.ledger import LEDGER_FILE
from cluster.scenario import Scenario
from cluster.simulated import run_simulated
from reports.fidelity import compare

LIVE_FOLDER = "live"
SIMULATED_FOLDER = "simulated"
FIDELITY_FILE = "fidelity.json"


def against_live(out: Path, live: dict[str, Any], scenario: Scenario) -> dict[str, Any]:
    """Simulate a scenario that has run live, and compare; the document is also written to `out`.

    Args:
        live: the summary of the live run.

    Raises:
        RunFolderError: `out` has a simulated run already.
    """
    simulated_dir = runfolder.create(out / SIMULATED_FOLDER, scenario)
    simulated = run_simulated(scenario, simulated_dir)
    document = {
        "title": f"{scenario.name}: simulated against live",
        "scenario": scenario.name,
        "partial": live["partial"] or simulated["partial"],
        "valid": live["valid"],
        "warnings": live["warnings"],
        "allocators": compare(Path(live["run_dir"]) / LEDGER_FILE, simulated_dir / LEDGER_FILE),
        "live": live,
        "simulated": simulated,
        "footnote": f"{live['footnote'].partition(';')[0]}; {simulated['footnote'].partition(',')[0]}",
    }
    runfolder.write_json(out / FIDELITY_FILE, document)
    return document
