"""A run as a Ray job: submit the scenario to a running cluster, follow the job's log, return its outcome."""

import asyncio
import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from cluster.live.ray_session import RayUnavailable, in_words
from cluster.scenario.shipped import find_scenario

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# Ray excludes the files in .gitignore; these are excluded even without one.
EXCLUDES = [".git", ".venv", "runs", "**/__pycache__"]


class SubmitError(ValueError):
    """The scenario can't be submitted; the message says why."""


def submit(scenario: Path, allocators: str | None, out: Path, address: str | None) -> bool:
    """Run `scenario` as a job and print its log while it grows; returns whether it succeeded. Ctrl-C stops the job.

    Args:
        allocators: the value of `--allocators`.
        out: the run folder, on the machine where the job runs.
        address: of the cluster's dashboard; default: RAY_API_SERVER_ADDRESS, else port 8265 of this machine.

    Raises:
        SubmitError: the scenario's file isn't below the working directory, and only that is uploaded.
        RayUnavailable: no cluster is reachable, or it requires a token.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # it logs every file that it doesn't upload
    found = find_scenario(scenario)
    try:
        # A name stands for itself: the job finds it as this command has.
        inside = scenario if found != scenario else found.resolve().relative_to(Path.cwd())
    except ValueError:
        raise SubmitError(f"{scenario} is not below {Path.cwd()}, and only the working directory is uploaded") from None
    command = ["python", "-m", "cluster", "run", str(inside), "--out", str(out.resolve())]
    if allocators:
        command += ["--allocators", allocators]
    try:
        client = JobSubmissionClient(address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS)
        job = client.submit_job(entrypoint=shlex.join(command), runtime_env={"working_dir": ".", "excludes": EXCLUDES})
    except Exception as error:
        raise RayUnavailable(in_words(error, "is `ray start --head` running, with its dashboard?")) from None
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background processes with it ignored
    print(f"job {job}", file=sys.stderr, flush=True)
    log = _Log()
    try:
        asyncio.run(log.follow(client, job))
    except KeyboardInterrupt:
        client.stop_job(job)
        asyncio.run(log.follow(client, job))
    return client.get_job_status(job) == JobStatus.SUCCEEDED


class _Log:
    """A job's log, each part of which is printed once."""

    def __init__(self) -> None:
        self._printed = 0

    async def follow(self, client: Any, job: str) -> None:
        """Print the log until the job has ended."""
        seen = 0
        async for text in client.tail_job_logs(job):
            print(text[max(0, self._printed - seen) :], end="", flush=True)
            seen += len(text)
            self._printed = max(self._printed, seen)
