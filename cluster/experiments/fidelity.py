"""The same scenario live and simulated, side by side."""

from pathlib import Path

import pandas as pd

from cluster.run_folder import folder as run_folder
from cluster.scenario.schema import Scenario
from cluster.simulated.engine import run_simulated
from reports import files
from reports.fidelity import compare
from reports.schema import Fidelity, Summary

LIVE_FOLDER = "live"
AGAIN_FOLDER = "live-again"
SIMULATED_FOLDER = "simulated"


def against_live(out: Path, live: Summary, scenario: Scenario, again: Summary | None = None) -> Fidelity:
    """Simulate a scenario that has run live, and compare; the document is also written to `out`.

    The time that it takes to ask the allocator is the machine's, not the scenario's: the simulation takes the live
    run's median.

    Args:
        live: the summary of the live run.
        again: that of a second live run, to compare the first one with.

    Raises:
        RunFolderError: `out` has a simulated run already.
    """
    simulated_dir = run_folder.create(out / SIMULATED_FOLDER, scenario)
    ledger = Path(live.run_dir) / files.LEDGER
    asked = pd.read_parquet(ledger, columns=["allocator", "allocate_ms"]).query("allocate_ms > 0")
    medians = asked.groupby("allocator", sort=False).allocate_ms.median()
    ask_ms = {str(name): round(float(ms), 2) for name, ms in medians.items()}
    simulated = run_simulated(scenario, simulated_dir, ask_ms)
    live_runs = [live] + ([again] if again else [])
    runs = [*live_runs, simulated]
    document = Fidelity(
        title=f"{scenario.name}: simulated against live",
        scenario=scenario.name,
        partial=any(run.partial for run in runs),
        valid=all(run.valid for run in runs),
        warnings=[warning for run in live_runs for warning in run.warnings],
        ask_ms=ask_ms,
        allocators=compare(ledger, simulated_dir / files.LEDGER),
        live_again=compare(ledger, Path(again.run_dir) / files.LEDGER) if again else {},
        live=live,
        simulated=simulated,
        footnote=f"{live.footnote.partition(';')[0]}; {simulated.footnote.partition(',')[0]}",
    )
    document.write(out / files.FIDELITY)
    return document
