"""What is submitted is checked before the cluster is touched, and is the same run when it is tried again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.live import ray_job
from cluster.live.ray_job import Cluster, Submission, SubmitError, read_runtime_env, submit
from cluster.live.ray_session import RayUnavailable
from cluster.scenario.schema import Scenario
from tests.support.commands import scout

Write = Callable[..., Path]
NOBODY = "http://127.0.0.1:1"


def submission(path: Path, **changes: Any) -> Submission:
    asked = Submission(path, Scenario.load(path), None, path.parent / "out", "one", path.parent)
    return replace(asked, **changes)


def test_the_job_runs_the_scenario_as_it_was_uploaded(scenario: Write, tmp_path: Path) -> None:
    asked = submission(scenario())
    assert asked.entrypoint() == (
        'exec python -m cluster run tiny.yaml --out "${PWD%%/runtime_resources/*}/logs"/scout/one'
    )
    kept = replace(asked, allocators="equal,deadline", there="/volume/a b").entrypoint()
    assert kept.startswith("python -m cluster run tiny.yaml --allocators equal,deadline --out '/volume/a b'; code=$?;")
    assert kept.endswith('/logs"/scout/one; exit $code')
    shipped = replace(asked, path=Path("congestion"), scenario=Scenario.load("congestion"))
    assert " run congestion --out " in shipped.entrypoint()
    with pytest.raises(SubmitError, match=r"is not below .*/elsewhere, and only the working directory is uploaded"):
        replace(asked, working_dir=tmp_path / "elsewhere").entrypoint()


def test_the_job_is_put_on_the_station(scenario: Write) -> None:
    nodes = {"desk": {"labels": {"site": "desk"}, "resources": {"disk": 2}, "address": "10.0.0.5"}, "any": {}}
    asked = submission(scenario(cluster={"nodes": nodes, "station": "desk"}))
    assert asked.station() == {
        "entrypoint_label_selector": {"site": "desk"},
        "entrypoint_resources": {"disk": 0.001, "node:10.0.0.5": 0.001},
    }
    assert submission(scenario(cluster={"nodes": nodes, "station": "any"})).station() == {}
    assert submission(scenario()).station() == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[pip]", "a runtime environment is a mapping"),
        ("working_dir: x", "working_dir: given by --working-dir"),
        ("{", "env.yaml: "),
    ],
)
def test_a_runtime_environment_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "env.yaml"
    path.write_text(text)
    with pytest.raises(SubmitError, match=message):
        read_runtime_env(path)
    with pytest.raises(SubmitError, match=r"none.yaml"):
        read_runtime_env(tmp_path / "none.yaml")
    path.write_text("env_vars: {A: b}")
    assert read_runtime_env(path) == {"env_vars": {"A": "b"}}


def test_a_result_that_is_here_is_not_made_again(scenario: Write, tmp_path: Path) -> None:
    """Nobody listens at the cluster's address."""
    path = scenario()
    asked = submission(path)
    with pytest.raises(RayUnavailable):
        submit(asked, NOBODY)
    assert not asked.out.exists()
    done = scout("run", path, "--engine", "simulated", "--out", asked.out)
    assert done.returncode == 0, done.stderr
    assert submit(asked, NOBODY) is True
    other = submission(scenario(seed=7), out=asked.out)
    with pytest.raises(SubmitError, match="out is not empty, and not this run's"):
        submit(other, NOBODY)


class Jobs:
    """Ray's client, of a cluster that has these jobs."""

    def __init__(self, *known: SimpleNamespace) -> None:
        self.known = list(known)
        self.submitted: list[dict[str, Any]] = []

    def list_jobs(self) -> list[SimpleNamespace]:
        return self.known

    def submit_job(self, **options: Any) -> str:
        self.submitted.append(options)
        self.known.append(SimpleNamespace(submission_id=options["submission_id"], metadata=options["metadata"]))
        return options["submission_id"]

    def get_job_info(self, job: str) -> SimpleNamespace:
        return SimpleNamespace(driver_node_id="n1")


def cluster_of(jobs: Jobs) -> Cluster:
    made = Cluster.__new__(Cluster)
    made._jobs = jobs  # type: ignore[assignment]
    return made


def test_an_id_is_submitted_once_and_belongs_to_one_scenario(scenario: Write) -> None:
    jobs = Jobs()
    asked = submission(scenario(), runtime_env={"env_vars": {"A": "b"}, "excludes": ["big"]})
    for _ in range(2):
        cluster_of(jobs).take(asked, "command")
    (given,) = jobs.submitted
    assert given["runtime_env"]["env_vars"] == {"A": "b"}
    assert {"big", ".git", "runs"} <= set(given["runtime_env"]["excludes"])
    with pytest.raises(SubmitError, match="has a job one of another scenario; give another --id"):
        cluster_of(jobs).take(submission(scenario(seed=7)), "command")
    assert len(jobs.submitted) == 1


class Answer:
    """What the dashboard answers."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def json(self) -> Any:
        return {"data": {"result": self.content}}

    def iter_content(self, size: int) -> list[bytes]:
        return [self.content]


def test_the_run_folder_is_fetched_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"scout/one/summary.json": b"{}", "scout/one/journal/a.jsonl": b"\x00\xff\n"}
    asked: list[str] = []

    def get(self: Cluster, path: str, **query: Any) -> Answer:
        asked.append(query.get("filename", "list"))
        listed = {"internal": [*there, "scout/one/journal/"]}
        return Answer(there[query["filename"]] if "filename" in query else listed)

    monkeypatch.setattr(Cluster, "_get", get)
    out = tmp_path / "out"
    cluster_of(Jobs()).fetch("one", out)
    assert (out / "journal/a.jsonl").read_bytes() == b"\x00\xff\n" and (out / "summary.json").read_bytes() == b"{}"
    assert asked[-1].endswith("summary.json"), "last, since what has it is whole"
    monkeypatch.setattr(ray_job, "MAX_FETCHED_BYTES", 3)
    with pytest.raises(RayUnavailable, match="more than 3 bytes"):
        cluster_of(Jobs()).fetch("one", tmp_path / "large")
    there["scout/one/../../x"] = b"x"
    with pytest.raises(RayUnavailable, match="a file called"):
        cluster_of(Jobs()).fetch("one", tmp_path / "bad")
    assert not (tmp_path / "x").exists()


def test_what_is_wrong_is_said_before_the_cluster_is_asked(scenario: Write, tmp_path: Path) -> None:
    path = scenario(deadline_ms=-1)
    done = scout("submit", path, "--address", NOBODY)
    assert done.returncode == 2 and "deadline_ms" in done.stderr and "Ray" not in done.stderr
    done = scout("submit", "congestion", "--id", "a/b", "--address", NOBODY)
    assert done.returncode == 2 and "--id 'a/b'" in done.stderr
