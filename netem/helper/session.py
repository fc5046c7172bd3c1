"""Starts and stops the helper process, from the process that drives a run."""

import contextlib
import json
import logging
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from netem.helper import protocol
from netem.helper.folder import NoSocketFolder, socket_folder
from netem.impairments import NO_IMPAIRMENTS, Impairments
from netem.link import CongestionControl

LinkKind = Literal["auto", "kernel", "paced"]
Privilege = Literal["auto", "root", "userns", "sudo"]

READY_TIMEOUT_S = 20.0
BUILD_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0


class LinkUnavailable(RuntimeError):
    """This machine can't provide the requested kind of link; the message says why, and the remedy."""


class LinkSession:
    """A built link, which exists until it is stopped or this process ends. Make one with `start`.

    Attributes:
        kind: `kernel` or `paced`.
        privilege: the helper's privilege: `root`, `userns` or `sudo`; `none` for a paced link.
        fallback_reason: why `auto` fell back to a paced link, else None.
        socket_path: where a `client.LinkClient` connects.
        pid: the helper's process.

    When the helper ends, TCP connections through the kernel link aren't reset but fall silent, because the namespaces
    between their ends are gone; `LinkClient.until_lost` reports it.
    """

    def __init__(self, kind: str, privilege: str, build: protocol.Build, fallback_reason: str | None = None) -> None:
        """Start one kind of helper with one privilege and build the link. Raises LinkUnavailable."""
        self.kind = kind
        self.privilege = privilege
        self.fallback_reason = fallback_reason
        try:
            self._folder = Path(socket_folder("scout-link-", room=len("/helper.sock")))
        except NoSocketFolder as error:
            raise LinkUnavailable(str(error)) from None
        self.socket_path = str(self._folder / "helper.sock")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the helper runs)
        self._stopped = False
        self._request = build
        try:
            self._process = self._spawn()
        except OSError as error:
            self._clean_up()
            raise LinkUnavailable(f"the helper can't be started: {error}") from error
        try:
            self.pid = self._wait_until_ready()
            self._build(build)
        except BaseException:
            self.stop()
            raise

    @classmethod
    def start(
        cls,
        kind: LinkKind = "auto",
        *,
        agents: int,
        workers: int,
        channel_mbps: float,
        grant_mbps: float,
        privilege: Privilege = "auto",
        congestion: CongestionControl = "reno",
        impairments: Impairments = NO_IMPAIRMENTS,
    ) -> Self:
        """Start the helper and build a link on which every agent has `grant_mbps` of a channel of `channel_mbps`.

        `auto` takes the kernel link with the first privilege that works, and the paced link only if none does. Blocks
        for about 0.3 s. Only the kernel link offers a choice of congestion controls and impairs packets: with any but
        Reno, or with `impairments`, `auto` means `kernel`.
        Raises ValueError for numbers out of bounds, and LinkUnavailable.
        """
        build = protocol.Build(
            id=0,
            op="build",
            agents=agents,
            workers=workers,
            channel_mbps=channel_mbps,
            grant_mbps=grant_mbps,
            congestion=congestion,
            impairments=impairments,
        )
        kernel_only = congestion != "reno" or impairments.active
        if kind == "paced":
            if impairments.active:
                raise LinkUnavailable("delay, jitter, loss and reordering: the paced link has none, only the kernel's")
            if kernel_only:
                raise LinkUnavailable(
                    f"congestion control {congestion}: the paced link has none to choose, only the kernel's"
                )
            return cls("paced", "none", build)
        reasons: dict[str, list[str]] = {}
        for one in _privileges() if privilege == "auto" else [privilege]:
            try:
                return cls("kernel", one, build)
            except LinkUnavailable as error:
                reasons.setdefault(str(error), []).append(one)
        why = "; ".join(f"{', '.join(privileges)}: {reason}" for reason, privileges in reasons.items())
        why = f"the kernel can't shape links here ({why})"
        if kind == "kernel" or kernel_only:
            raise LinkUnavailable(why)
        return cls("paced", "none", build, fallback_reason=why)

    def restart(self) -> None:
        """Start another helper in place of one that has ended, and build the link as it was at first.

        Its clients find it at the same path; sockets of the old link are dead. Blocks as `start` does.

        Raises:
            LinkUnavailable: it can't be started. The session is still to be stopped.
        """
        assert self._process.stdin and self._process.stdout
        self._process.wait(STOP_TIMEOUT_S)
        self._process.stdin.close()
        self._process.stdout.close()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        (self._folder / "helper.sock").unlink(missing_ok=True)
        try:
            self._process = self._spawn()
        except OSError as error:
            raise LinkUnavailable(f"the helper can't be started: {error}") from error
        self.pid = self._wait_until_ready()
        self._build(self._request)

    def stop(self) -> None:
        """End the helper, its namespaces and the connections in them. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(PermissionError):  # started by sudo, so we may not kill it
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()
        complaint = self._complaint()
        if complaint:
            logging.getLogger(__name__).warning("the link's helper reported: %s", complaint)
        self._clean_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _clean_up(self) -> None:
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=Path(__file__).parents[2],  # where `-m netem.helper` is found, however the project is installed
            start_new_session=True,  # Ctrl-C in the terminal is meant for the driver only
        )

    def _command(self) -> list[str]:
        command = [sys.executable, "-m", "netem.helper", "--socket", self.socket_path, "--uid", str(os.geteuid())]
        command += ["--link", self.kind, "--privilege", self.privilege]
        if self.privilege == "sudo":
            return ["sudo", "-n", "--", *command]
        # For the kernel, a process's parent is the thread that started it, so pass --parent only from the thread that
        # lasts as long as the process. From other threads, the helper relies on the end of its standard input.
        if threading.current_thread() is threading.main_thread():
            command += ["--parent", str(os.getpid())]
        return command

    def _wait_until_ready(self) -> int:
        """Wait for the helper's process id; it differs from the child's if that is sudo."""
        assert self._process.stdout
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline_s - time.monotonic()))
            if not readable:
                raise LinkUnavailable(f"the helper wasn't ready after {READY_TIMEOUT_S:.0f} s")
            data = os.read(self._process.stdout.fileno(), 4096)
            if not data:
                raise LinkUnavailable(self._complaint() or "the helper ended without a message")
            line += data
        status = json.loads(line)
        if not status["ready"]:
            raise LinkUnavailable(status["error"])
        return int(status["pid"])

    def _build(self, build: protocol.Build) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(BUILD_TIMEOUT_S)
            try:
                connection.connect(self.socket_path)
                connection.send(protocol.encode(build.model_dump(exclude_defaults=True)))
                message = connection.recv(protocol.MAX_ANSWER_BYTES)
            except OSError as error:
                raise LinkUnavailable(f"the helper didn't build the link: {error}") from error
        if not message:
            raise LinkUnavailable(self._complaint() or "the helper ended while it built the link")
        answer = json.loads(message)
        if not answer["ok"]:
            raise LinkUnavailable(answer["error"])

    def _complaint(self) -> str:
        """The end of the helper's output on standard error."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-2000:]


def _privileges() -> list[str]:
    found = ["root"] if os.geteuid() == 0 else []
    found.append("userns")
    if shutil.which("sudo") and os.geteuid() != 0:
        found.append("sudo")
    return found
