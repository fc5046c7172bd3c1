"""Reports: everything is there, nothing is fetched, damage is said, and names can't become markup."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd
import pytest

from cluster.run_folder import folder as run_folder
from cluster.run_folder.timeline import Event
from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import Document
from cluster.simulated.engine import run_simulated
from reports.figures import reliability, switch_share
from reports.page import Page, _agents_table, _event_section, _main_table, _run_facts, report_on, write_report
from reports.runs import ReportError, read_run
from reports.schema import Comparison

CONGESTED = """
name: congested
deadline_ms: 2000
modes: [full, int8, mixed_int4, int4]
allocators: [equal, deadline]
uplink: {channel: {kind: markov}}
arrivals: {kind: poisson, rate_per_s: 0.5, duration_s: 20}
agents: {groups: [{profile: measured/qwen2.5-7b, count: 6}]}
cloud: {workers: 2}
"""
FIGURES = {
    "timeline_equal", "timeline_deadline", "slack", "stages", "agents", "predicted",
    "reliability", "bandwidth", "modes", "solving",
}  # fmt: skip


def simulate(folder: Path, seed: int = 42, description: str = "") -> Path:
    text = CONGESTED + f"seed: {seed}\ndescription: {json.dumps(description)}\n"
    scenario = Scenario.from_document(Document(folder / "congested.yaml", text))
    run_simulated(scenario, run_folder.create(folder, scenario))
    return folder


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run_dir(simulated: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(simulated, tmp_path / "run"))


def page_of(*folders: Path) -> Page:
    return report_on(folders)[1]


def figures_of(page: Page) -> dict[str, ET.Element]:
    return {drawn.name: ET.fromstring(drawn.svg) for section in page.sections for drawn in section.figures}


def test_a_run_has_every_figure_with_axes_and_what_to_read_off(simulated: Path) -> None:
    page = page_of(simulated)
    assert set(figures_of(page)) == FIGURES
    assert not page.warnings
    for section in page.sections:
        for drawn in section.figures:
            words = " ".join(ET.fromstring(drawn.svg).itertext())
            assert re.search(r"\((s|ms|%|Mbit/s|ms, logarithmic)\)", words), f"{drawn.name}: no axis with a unit"
            assert drawn.read.endswith(".") and len(drawn.read) > 20
            assert drawn.png.startswith(b"\x89PNG")


def test_the_page_needs_nothing_else_and_balances(simulated: Path, tmp_path: Path) -> None:
    path = write_report(page_of(simulated), tmp_path / "report")
    html = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 6e6
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)|@import|url\((?!#)""", html), "something is fetched"
    assert "<script" not in html
    ledger = pd.read_parquet(simulated / "ledger.parquet")
    table = pd.read_csv(tmp_path / "report" / "tables" / "allocators.csv").set_index("allocator")
    for name, rows in ledger.groupby("allocator"):
        shown = table.loc[name]
        assert shown.issued == len(rows) == shown.met + shown.late + shown.rejected + shown.failed
        assert shown.met == (rows.status == "met").sum()
    written = {file.name for file in (tmp_path / "report" / "figures").iterdir()}
    assert {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png", "csv")} == written
    markdown = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    for image in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (tmp_path / "report" / image).exists()


def test_the_same_folder_makes_the_same_page(simulated: Path, tmp_path: Path) -> None:
    first, again = (write_report(page_of(simulated), tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == again


def test_names_can_t_become_markup(tmp_path: Path) -> None:
    folder = simulate(tmp_path / "run", description="<script>alert(1)</script> $x^2$ | a*b")
    path = write_report(page_of(folder), tmp_path / "report")
    assert "<script" not in path.read_text(encoding="utf-8")
    assert "<script" not in (path.parent / "report.md").read_text(encoding="utf-8")


def test_slack_is_the_ledgers(simulated: Path) -> None:
    page = page_of(simulated)
    (drawn,) = [d for section in page.sections for d in section.figures if d.name == "slack"]
    assert drawn.data is not None
    ledger = pd.read_parquet(simulated / "ledger.parquet")
    for name, rows in ledger.groupby("allocator"):
        curve = drawn.data[drawn.data.allocator == name]
        below = curve[curve.slack_s < 0].percent.max()
        assert below == pytest.approx(100 * (rows.status != "met").mean()), name


def test_events_are_on_the_page(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    event = Event(3.0, "intervention", "uplink: 5 Mbit/s for 10 s")
    summary["events"] = [{"allocator": "deadline", "at_s": event.at_s, "kind": event.kind, "text": event.text}]
    (run_dir / "summary.json").write_text(json.dumps(summary))
    page = page_of(run_dir)
    assert ["deadline", "3.0", "intervention", event.text] in [
        list(row) for section in page.sections for table in section.tables for row in table.rows
    ]
    (drawn,) = [d for section in page.sections for d in section.figures if d.name == "timeline_deadline"]
    assert event.text in drawn.read


@pytest.mark.parametrize("name", ["summary.json", "run.json", "scenario.yaml", "timeline.parquet"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damage_is_said_and_the_rest_is_shown(run_dir: Path, name: str, damage: str) -> None:
    path = run_dir / name
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(b"\x00{" + content[: len(content) // 3])
    page = page_of(run_dir)
    assert any(name in warning for warning in page.warnings), page.warnings
    missing = {"timeline_equal", "timeline_deadline", "bandwidth"} if name == "timeline.parquet" else set()
    missing |= {"solving"} if name == "summary.json" else set()
    assert set(figures_of(page)) == FIGURES - missing
    (table,) = [t for section in page.sections for t in section.tables if t.name == "allocators"]
    assert len(table.rows) == 2


@pytest.mark.parametrize("junk", [None, 3, "text", [], {}, [1], {"a": 1}, True, -1e300])
@pytest.mark.parametrize("name", ["summary.json", "run.json"])
def test_no_value_in_a_file_breaks_the_report(run_dir: Path, name: str, junk: object) -> None:
    document = json.loads((run_dir / name).read_text())
    nested = document["allocators"]["deadline"] if "allocators" in document else document["versions"]
    for where in (document, nested):
        for key in list(where):
            before, where[key] = where[key], junk
            (run_dir / name).write_text(json.dumps(document))
            run = read_run(run_dir)
            list(_run_facts(run)), list(_event_section(run)), _agents_table(run), _main_table(run)
            where[key] = before


def test_a_ledger_that_says_otherwise_than_the_summary_counts(run_dir: Path) -> None:
    ledger = pd.read_parquet(run_dir / "ledger.parquet")
    ledger.loc[ledger.index[0], "status"] = "late" if ledger.status.iloc[0] == "met" else "met"
    ledger.to_parquet(run_dir / "ledger.parquet")
    assert any("differ" in warning for warning in page_of(run_dir).warnings)


def test_what_can_t_be_reported_on_is_refused_in_a_line(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    (run_dir / "ledger.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ReportError, match="damaged"):
        read_run(run_dir)
    (run_dir / "ledger.parquet").unlink()
    with pytest.raises(ReportError, match=r"no ledger\.parquet"):
        read_run(run_dir)
    (run_dir / "journal").mkdir()
    with pytest.raises(ReportError, match="scout recover"):
        read_run(run_dir)


def test_several_runs_are_a_comparison(simulated: Path, tmp_path: Path) -> None:
    runs = [simulated, *(simulate(tmp_path / f"run-{seed}", seed) for seed in range(43, 49))]
    found, page = report_on(runs)
    assert isinstance(found, Comparison)
    (point,) = found.points
    assert point.seeds == 7 and found.compared == ["equal", "deadline"]
    names = set(figures_of(page))
    assert {"tradeoff_0", "differences_compliance_0", "timeline_equal", "slack"} <= names
    assert "emulator late, all runs" in dict(page.facts)


def test_switches_are_counted_agent_by_agent() -> None:
    rows = pd.DataFrame(
        {
            "allocator": "x",
            "agent_id": [0, 1, 0, 1, 0],
            "intended_s": [0.0, 0.1, 1.0, 1.1, 2.0],
            "mode": ["full", "int4", "full", "int8", "int4"],
        }
    )
    assert switch_share(rows) == pytest.approx(100 * 2 / 3)


def test_nodes_are_on_the_page_with_the_network_underneath(run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    assert "The nodes, and the network underneath" not in [section.title for section in page_of(run_dir).sections]
    node = {
        "address": "10.0.0.2",
        "hostname": "edge-1",
        "hosts": 2,
        "workers": 1,
        "up_mbps": 941.3,
        "clock_error_ms": 0.0712,
    }
    summary |= {"nodes": [node], "relay": {"agents": 12, "refused_token": 1}}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    (section,) = [each for each in page_of(run_dir).sections if each.title == "The nodes, and the network underneath"]
    assert section.tables[0].rows == [["10.0.0.2 (edge-1)", "2", "1", "941", "–", "–", "–", "–", "0.071", "–"]]
    assert section.notes[1] == "Relay: agents 12, refused token 1."


def test_reliability_is_the_observed_share_of_what_was_thought_so_probable() -> None:
    rows = [(0.25, "full", "full", "met")] * 1 + [(0.25, "full", "prompt", "met")] * 2 + [(0.25, "full", "", "late")]
    rows += [(1.0, "prompt", "prompt", "met")] * 5 + [(float("nan"), "local", "local", "met")]
    ledger = pd.DataFrame(rows, columns=["likely", "mode", "answered", "status"]).assign(allocator="deadline")
    (drawn,) = reliability(ledger)
    assert drawn.data is not None
    found = drawn.data.sort_values("predicted")[["predicted", "observed", "requests"]].to_numpy().tolist()
    assert found == [[0.25, 0.25, 4], [1.0, 1.0, 5]]
    assert reliability(ledger.drop(columns="likely")) == [] == reliability(ledger[ledger.likely.isna()])
