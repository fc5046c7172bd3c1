"""`scout bench policies`: cells, the same arrivals for all, users' files, the verdict, going on after an interrupt."""

import json
import signal
from pathlib import Path

import pytest

from cluster.experiments import policy_bench
from cluster.experiments.policy_cells import Plan, plan, prompt_s
from cluster.run_folder.folder import RunFolderError
from cluster.scenario.yaml_document import DocumentError
from reports.policy_bench import losses, regret, results, verdict
from reports.schema import PolicyBench
from tests.support.commands import scout, started

POLICIES_FEW = ["deadline", "prompt_only", "local_only"]
SEEDS, DURATION_S = 3, 3.0


def small_plan(**changes: object) -> Plan:
    given = {"policies": POLICIES_FEW, "uplinks": ["lte_driving"], "workloads": ["chat"], "seeds": SEEDS}
    return plan(**(given | {"duration_s": DURATION_S, "quick": True} | changes))  # type: ignore[arg-type]


def command(out: Path, seeds: int = SEEDS) -> list[str | Path]:
    """The same bench on the command line."""
    cells = ["--quick", "--uplink", "lte_driving", "--workload", "chat", "--seeds", str(seeds)]
    policies = ["--policies", ",".join(POLICIES_FEW)]
    return ["bench", "policies", *cells, "--duration", str(DURATION_S), *policies, "--out", out]


def complete(out: Path) -> PolicyBench:
    """Make what is missing in a folder, in this process."""
    planned = small_plan()
    document = policy_bench.begin(planned, out)
    policy_bench.run(planned, document, out, 1, lambda: False, lambda line: None)
    return document


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bench of two cells and three seeds."""
    folder = tmp_path_factory.mktemp("bench") / "out"
    complete(folder)
    return folder


def test_every_policy_is_in_every_cell_that_it_can_serve_and_below_the_bound(whole: Path) -> None:
    done = scout(*command(whole), "--json")  # there is nothing left to do
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    found = PolicyBench.read(whole / "policies.json")
    assert shown["units"] == found.model_dump()["units"] and Path(shown["report"]).is_file()
    assert [(unit.cell, unit.seed) for unit in found.units] == [(c, s) for c in (0, 1) for s in (1, 2, 3)]
    for unit in found.units:
        with_prompts = found.cells[unit.cell].prompts
        assert set(unit.scores) == {"deadline", "local_only", *(["prompt_only"] if with_prompts else [])}
        assert unit.bound is not None and unit.requests > 3
        for score in unit.scores.values():
            assert score.met <= unit.bound.compliance and score.delivered <= unit.bound.delivered_quality
    of_seed = [{unit.requests for unit in found.units if unit.seed == seed} for seed in (1, 2, 3)]
    assert all(len(requests) == 1 for requests in of_seed) and len(set.union(*of_seed)) > 1
    assert shown["verdict"] == verdict(found) and shown["warnings"] == []


def test_the_verdict_names_what_a_hand_computed_mean_says(whole: Path) -> None:
    found = PolicyBench.read(whole / "policies.json")
    for unit in found.units:
        for name, score in unit.scores.items():
            score.met, score.delivered = (90.0, 80.0) if name == "deadline" else (90.05, 70.0)
        assert unit.bound is not None
        unit.bound.compliance, unit.bound.delivered_quality = 100.0, 81.0
    assert losses(found, "met") == losses(found, "delivered") == [], "0.05 is within the tolerance"
    assert "in met in 0 of 2 cells, in delivered in 0 of 2 cells" in verdict(found)
    assert regret(found).endswith("10.00 met, 1.00 delivered")
    found.units[0].scores["prompt_only"].met = 91.0  # of one of three seeds
    (loss,) = losses(found, "met")
    assert loss[1:] == ("prompt_only", pytest.approx((91.0 + 2 * 90.05) / 3 - 90.0))
    assert f"below prompt_only: {found.cells[0].name()}" in verdict(found)
    assert results(found)[0].means["prompt_only"]["met"] == pytest.approx((91.0 + 2 * 90.05) / 3)


def test_interrupted_it_says_so_and_shows_what_there_is(tmp_path: Path) -> None:
    seeds = 500  # far more runs than are made before the interrupt comes, however busy the machine is
    running = started(*command(tmp_path / "out", seeds), "--processes", "2")
    assert running.stderr is not None
    while f"1 of {2 * seeds}" not in (line := running.stderr.readline()):
        assert line or running.poll() is None
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in errors and "runs were made" in errors, errors
    assert 1 <= len(PolicyBench.read(tmp_path / "out" / "policies.json").units) < 2 * seeds


def test_stopped_it_goes_on_to_the_same_result(whole: Path, tmp_path: Path) -> None:
    planned = small_plan()
    document = policy_bench.begin(planned, tmp_path / "out")
    policy_bench.run(planned, document, tmp_path / "out", 2, lambda: bool(document.units), lambda line: None)
    made = PolicyBench.read(tmp_path / "out" / "policies.json").units
    assert made == document.units and 1 <= len(made) < 6, "of four at a time"
    with pytest.raises(RunFolderError, match="holds a bench with other duration_s; choose"):
        policy_bench.begin(small_plan(duration_s=5.0), tmp_path / "out")
    assert complete(tmp_path / "out").units == PolicyBench.read(whole / "policies.json").units


def test_users_files_are_thinned_to_the_load_and_each_seed_has_a_window_of_its_own(tmp_path: Path) -> None:
    rates = [f"{t},{5 + t % 7}" for t in range(60)]
    (tmp_path / "my_link.csv").write_text("\n".join(["t_s,mbps", *rates]))
    requests = [f"{i * 0.05},{100 + i % 50},20" for i in range(4000)]
    (tmp_path / "my_load.csv").write_text("\n".join(["t_s,context_tokens,output_tokens", *requests]))
    planned = small_plan(
        uplinks=[str(tmp_path / "my_link.csv")], workloads=[str(tmp_path / "my_load.csv")], seeds=2, duration_s=20.0
    )
    cell = planned.cells[0]
    assert (cell.uplink, cell.workload) == ("my_link", "my_load")
    scenarios = [planned.scenario(cell, seed) for seed in planned.seeds]
    wanted = cell.cloud_load * scenarios[0].cloud.workers / prompt_s() * 20
    assert [len(s.schedule()) for s in scenarios] == pytest.approx([wanted, wanted], rel=0.05)
    first, second = ([change.mbps for change in s.uplink.channel.until(0, 20)] for s in scenarios)
    assert first == [5 + t % 7 for t in range(20)] and second == [5 + t % 7 for t in range(20, 40)]


def test_cells_that_nobody_can_serve_are_left_out() -> None:
    planned = small_plan(policies=["prompt_only"])
    assert [cell.prompts for cell in planned.cells] == [True]
    assert planned.scenario(planned.cells[0], 1).allocator_names == ["prompt_only"]
    with pytest.raises(DocumentError, match="none of static_scout can serve the modes of any cell"):
        small_plan(policies=["static_scout"])


def test_all_shipped_cells_load() -> None:
    planned = plan(list(policy_bench.POLICIES), None, None, 1, 5.0, quick=False)
    assert len(planned.cells) == 5 * 2 * 2 * 2 * 2
    assert {planned.scenario(cell, 1).name for cell in planned.cells} == {"policies"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uplinks": ["nowhere"]}, "--uplink nowhere: no such file, nor one of lte_walking, lte_driving"),
        ({"uplinks": ["bad.csv"]}, "bad.csv:3: 'x,5' is not 't_s,mbps'"),
        ({"uplinks": ["lte_driving", "lte_driving"]}, "another one is called lte_driving"),
        ({"workloads": ["nothing"]}, "--workload nothing: no such file, nor one of chat, code, long_document"),
        ({"workloads": ["bad.csv"]}, "bad.csv"),
        ({"workloads": ["short.csv"]}, "short.csv: 4.0 s of requests; 3 seeds of 3 s at a cloud load of 0.5 need "),
        ({"policies": ["best"]}, "no allocator 'best'; there are equal"),
        ({"policies": ["static_prompt", "static_"]}, "no allocator 'static_'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    changes: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.csv").write_text("t_s,mbps\n0,5\nx,5\n")
    (tmp_path / "short.csv").write_text(
        "\n".join(["t_s,context_tokens,output_tokens", *(f"{t},9,9" for t in range(5))])
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DocumentError) as caught:
        small_plan(**changes)
    assert message in str(caught.value)
