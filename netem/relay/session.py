"""Starts and stops the relay's process, from the process that drives a run."""

import contextlib
import json
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from netem.helper.session import LinkUnavailable
from netem.relay.client import RelayAddress
from netem.relay.protocol import new_token

READY_TIMEOUT_S = 40.0  # more than the relay waits for the helper
STOP_TIMEOUT_S = 5.0


class RelaySession:
    """A running relay, until it is stopped or this process ends.

    Attributes:
        address: for those who take part.
        pid: its process.
    """

    def __init__(self, link_path: str, host: str, limit: int, port: int = 0) -> None:
        """Start it beside the helper that listens at `link_path`, for `limit` connections. Raises LinkUnavailable."""
        self._command = [sys.executable, "-m", "netem.relay", "--socket", link_path, "--host", host]
        self._command += ["--limit", str(limit)]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the relay runs)
        token = new_token()
        self.address = RelayAddress(host, self._spawn(token, port), token)

    def restart(self) -> None:
        """Start another relay in place of one that has ended, at the same port and with the same token.

        Those who take part find it there. Blocks until it is ready, which takes as long as there is no helper.

        Raises:
            LinkUnavailable: it can't be started.
        """
        self._end()
        self._spawn(self.address.token, self.address.port)

    def _spawn(self, token: bytes, port: int) -> int:
        """Start the process; the port that it listens at. Raises LinkUnavailable."""
        self._process = subprocess.Popen(
            [*self._command, "--port", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=Path(__file__).parents[2],  # where `-m netem.relay` is found, however the project is installed
            start_new_session=True,
        )
        try:
            ready = self._begin(token)
        except BaseException:
            self._end()
            raise
        self.pid: int = ready["pid"]
        return ready["port"]

    def _begin(self, token: bytes) -> dict:
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(token.hex().encode() + b"\n")
            self._process.stdin.flush()
        readable, _, _ = select.select([self._process.stdout], [], [], READY_TIMEOUT_S)
        if not readable:
            raise LinkUnavailable(f"the relay wasn't ready after {READY_TIMEOUT_S:g} s")
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip()
            raise LinkUnavailable(f"the relay ended: {said[-500:] or 'without a message'}")
        ready = json.loads(line)
        if not ready["ready"]:
            raise LinkUnavailable(f"the relay: {ready['error']}")
        return ready

    def stop(self) -> None:
        """End it, and all that goes through it. Idempotent."""
        self._end()
        self._log.close()

    def _end(self) -> None:
        """End the process; another one may be started."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
