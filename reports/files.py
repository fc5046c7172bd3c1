"""Names of the files that runs, comparisons and fidelity tests leave: the one list for writers and readers."""

from pathlib import Path

# Of a run folder.
RUN = "run.json"
SCENARIO = "scenario.yaml"
SUMMARY = "summary.json"
LEDGER = "ledger.parquet"
TIMELINE = "timeline.parquet"
CHANNEL = "channel.csv"
EVENTS = "events.jsonl"
CONTROLS = "controls.jsonl"
JOURNAL = "journal"  # a folder, as long as the run is on
# Of one allocator's turn, in a folder of its own below `journal`.
TURN_TIMELINE = "timeline.jsonl"
TURN_REQUESTS = "host-*.jsonl"  # one of each host of agents
# Of folders that hold several run folders.
COMPARISON = "compare.json"
FIDELITY = "fidelity.json"
# Of the folder of `scout bench policies`.
POLICIES = "policies.json"
# Of a study of real models.
STUDY = "study.json"
STUDY_RESULTS = "results.parquet"


def turn_journal(run_dir: Path, allocator: str) -> Path:
    """The folder in which the actors of one allocator's turn write their records."""
    return run_dir / JOURNAL / allocator
