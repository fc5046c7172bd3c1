"""A run as a Ray job: submit the scenario to a running cluster, follow the job's log, fetch the run folder back.

In the cluster the run folder is among the logs of the node where the job runs: Ray's dashboard, the only thing that
must be reachable, hands out what is there.
"""

import asyncio
import hashlib
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import requests
import yaml

from cluster.live.ray_session import RayUnavailable, in_words
from cluster.run_folder import folder as run_folder
from cluster.scenario.schema import Scenario
from cluster.scenario.shipped import find_scenario
from configs.reading import FileRefused, read_text
from configs.yaml_text import load_yaml
from reports import files

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# Ray excludes the files in .gitignore; these are excluded even without one.
EXCLUDES = [".git", ".venv", "runs", "**/__pycache__"]
# Where Ray puts a job's working directory is below its session's folder, beside the logs.
LOGS = '"${PWD%%/runtime_resources/*}/logs"'
PREFIX = "scout"  # of the run folders among them
MAX_FILES = 10_000
MAX_FETCHED_BYTES = 4 * 2**30
MAX_RUNTIME_ENV_BYTES = 2**20
TIMEOUT_S = 30.0
AGAIN_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # pauses before what failed is tried again
NOT_YET = "No available agent"  # what Ray's dashboard says while the cluster is young
SELECTING = 0.001  # of a custom resource: enough to be put where it is


class SubmitError(ValueError):
    """The scenario can't be submitted; the message says why."""


@dataclass(frozen=True)
class Submission:
    """What is submitted.

    Attributes:
        path: the scenario's file, below `working_dir`, or the name of one that ships.
        allocators: the value of `--allocators`.
        out: the run folder here, into which it is fetched.
        job: the submission's id: the same one again is the same run.
        there: the run folder in the cluster, for example on a volume that outlives it; default: among Ray's logs.
        runtime_env: Ray's, without a working directory.
        detached: leave the job running, and follow it another time.
    """

    path: Path
    scenario: Scenario
    allocators: str | None
    out: Path
    job: str
    working_dir: Path = Path()
    there: str | None = None
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    detached: bool = False

    def entrypoint(self) -> str:
        """The job's shell command."""
        found = find_scenario(self.path)
        try:
            # A name stands for itself: the job finds it as this command has.
            inside = self.path if found != self.path else found.resolve().relative_to(self.working_dir.resolve())
        except ValueError:
            raise SubmitError(
                f"{self.path} is not below {self.working_dir.resolve()}, and only the working directory is uploaded"
            ) from None
        words = ["python", "-m", "cluster", "run", str(inside)]
        if self.allocators:
            words += ["--allocators", self.allocators]
        among_logs = f"{LOGS}/{PREFIX}/{self.job}"
        if self.there is None:
            return f"exec {shlex.join(words)} --out {among_logs}"
        there = shlex.quote(self.there)
        copy = f"mkdir -p {LOGS}/{PREFIX} && cp -r {there} {among_logs}"
        return f"{shlex.join(words)} --out {there}; code=$?; {copy}; exit $code"

    def station(self) -> dict[str, Any]:
        """What puts the job on the scenario's station, as arguments of Ray's `submit_job`."""
        cluster = self.scenario.cluster
        if cluster is None or cluster.station is None:
            return {}
        node = cluster.nodes[cluster.station]
        resources = dict.fromkeys(node.resources, SELECTING)
        if node.address is not None:
            resources[f"node:{node.address}"] = SELECTING
        options: dict[str, Any] = {}
        if resources:
            options["entrypoint_resources"] = resources
        if node.labels:
            options["entrypoint_label_selector"] = dict(node.labels)
        return options

    def fingerprint(self) -> str:
        """Tells this run from others that might have its id."""
        text = json.dumps(self.scenario.resolved(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def read_runtime_env(path: Path | None) -> dict[str, Any]:
    """A runtime environment as Ray documents it, of a YAML file. Raises SubmitError."""
    if path is None:
        return {}
    try:
        found = load_yaml(read_text(path, MAX_RUNTIME_ENV_BYTES))
    except (OSError, FileRefused, ValueError, yaml.YAMLError) as error:
        raise SubmitError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise SubmitError(f"{path}: a runtime environment is a mapping, such as `pip: [scout-emulator]`")
    if "working_dir" in found:
        raise SubmitError(f"{path}: working_dir: given by --working-dir")
    return found


def submit(submission: Submission, address: str | None) -> bool:
    """Run it as a job, print its log while it grows, and fetch the run folder; returns whether it succeeded.

    Ctrl-C stops the job. A result that is here already isn't made again, and a job of this id that the cluster has is
    followed, not submitted again.

    Args:
        address: of the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, else port 8265 of this machine.

    Raises:
        SubmitError: the scenario wouldn't travel, the id is another run's, or the folder here is in use.
        RayUnavailable: no cluster is reachable, or it requires a token.
    """
    if (whole := _is_here(submission)) is not None:
        print(f"{submission.out} has the result already", file=sys.stderr, flush=True)
        return whole
    entrypoint = submission.entrypoint()
    cluster = Cluster(address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS)
    cluster.take(submission, entrypoint)
    print(f"job {submission.job}", file=sys.stderr, flush=True)
    if submission.detached:
        return True
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background processes with it ignored
    succeeded = cluster.follow(submission.job)
    cluster.fetch(submission.job, submission.out)
    return succeeded


def _is_here(submission: Submission) -> bool | None:
    """Whether the run folder's result is a whole one; None if there is none yet. Raises SubmitError."""
    out = submission.out
    if not out.exists() or not any(out.iterdir()):
        return None
    try:
        summary = json.loads(read_text(out / files.SUMMARY, 64 * 2**20))
        _, scenario = run_folder.read(out)
        same = scenario.resolved() == submission.scenario.resolved()
    except (OSError, FileRefused, ValueError):
        same = False
    if not same:
        raise SubmitError(f"{out} is not empty, and not this run's; a run needs a folder of its own")
    return not summary["partial"] and summary["valid"]


class Cluster:
    """A Ray cluster by its dashboard. Raises RayUnavailable where it can't be reached or wants a token."""

    def __init__(self, address: str) -> None:
        from ray.job_submission import JobSubmissionClient

        try:
            self._jobs = JobSubmissionClient(address)
            for logger in ("ray", "ray.dashboard"):  # they tell of every file that isn't uploaded, and of every socket
                logging.getLogger(logger).setLevel(logging.ERROR)
        except Exception as error:
            raise RayUnavailable(in_words(error, "is `ray start --head` running, with its dashboard?")) from None

    def take(self, submission: Submission, entrypoint: str) -> None:
        """Submit it, unless the cluster has it already. Raises SubmitError: this id is another run's."""
        known = [job for job in self._jobs.list_jobs() if job.submission_id == submission.job]
        if known:
            if (known[0].metadata or {}).get("scout") != submission.fingerprint():
                raise SubmitError(f"the cluster has a job {submission.job} of another scenario; give another --id")
            return
        environment = {**submission.runtime_env, "working_dir": str(submission.working_dir)}
        environment["excludes"] = [*EXCLUDES, *environment.get("excludes", [])]
        options = {
            "entrypoint": entrypoint,
            "submission_id": submission.job,
            "runtime_env": environment,
            "metadata": {"scout": submission.fingerprint()},
            **submission.station(),
        }
        for pause_s in (*AGAIN_S, None):
            try:
                self._jobs.submit_job(**options)
                return
            except Exception as error:
                if pause_s is None or NOT_YET not in str(error):
                    raise RayUnavailable(in_words(error, "")) from None
            time.sleep(pause_s)

    def follow(self, job: str) -> bool:
        """Print the job's log until it has ended; whether it succeeded. Ctrl-C stops it, and its log goes on."""
        from ray.job_submission import JobStatus

        log = _Log()
        try:
            asyncio.run(log.follow(self._jobs, job))
        except KeyboardInterrupt:
            self._jobs.stop_job(job)
            asyncio.run(log.follow(self._jobs, job))
        return self._jobs.get_job_status(job) == JobStatus.SUCCEEDED

    def fetch(self, job: str, out: Path) -> None:
        """Copy the run folder here, if there is one: a scenario that the cluster has refused leaves none.

        Raises RayUnavailable: it can't be had, or is too large.
        """
        node = self._jobs.get_job_info(job).driver_node_id
        top = f"{PREFIX}/{job}"
        listed = self._get("/api/v0/logs", node_id=node, glob=f"{top}/**/*").json()["data"]["result"]
        names = [name for names in listed.values() for name in names if not name.endswith("/")]
        if not names:
            print("no run folder came of it", file=sys.stderr, flush=True)
            return
        if len(names) > MAX_FILES:
            raise RayUnavailable(f"job {job}: {len(names)} files in its run folder; at most {MAX_FILES} are fetched")
        left = MAX_FETCHED_BYTES
        for name in sorted(names, key=lambda name: name.endswith(files.SUMMARY)):  # last: what has it is whole
            inside = PurePosixPath(name).relative_to(top)
            if ".." in inside.parts:
                raise RayUnavailable(f"job {job}: a file called {name!r}")
            left = self._fetch_file(node, name, out / inside, left)
        print(f"run folder: {out}", file=sys.stderr, flush=True)

    def _fetch_file(self, node: str | None, name: str, to: Path, left: int) -> int:
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = to.with_name(f"{to.name}.part")
        with self._get("/api/v0/logs/file", node_id=node, filename=name, lines=-1) as answer, beside.open("wb") as file:
            for piece in answer.iter_content(2**20):
                left -= len(piece)
                if left < 0:
                    raise RayUnavailable(f"more than {MAX_FETCHED_BYTES:,} bytes in the run folder of the job")
                file.write(piece)
        beside.replace(to)
        return left

    def _get(self, path: str, **query: Any) -> requests.Response:
        jobs = self._jobs
        try:
            answer = requests.get(
                jobs._address + path, params=query, headers=jobs._headers, cookies=jobs._cookies, verify=jobs._verify,
                stream=True, timeout=TIMEOUT_S,
            )  # fmt: skip
            answer.raise_for_status()
        except requests.RequestException as error:
            raise RayUnavailable(f"Ray: the run folder can't be fetched: {error}") from None
        return answer


class _Log:
    """A job's log, each part of which is printed once."""

    def __init__(self) -> None:
        self._printed = 0

    async def follow(self, client: Any, job: str) -> None:
        """Print the log until the job has ended, over some broken connections."""
        for pause_s in (*AGAIN_S, None):
            try:
                return await self._read(client, job)
            except (RuntimeError, OSError) as error:
                if pause_s is None:
                    raise RayUnavailable(f"Ray: the log of job {job} can't be followed: {error}") from None
                await asyncio.sleep(pause_s)

    async def _read(self, client: Any, job: str) -> None:
        seen = 0
        async for text in client.tail_job_logs(job):
            print(text[max(0, self._printed - seen) :], end="", flush=True)
            seen += len(text)
            self._printed = max(self._printed, seen)
