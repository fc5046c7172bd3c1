"""Odd environments do no harm: sockets have a place whatever TMPDIR is, or TMPDIR is named."""

import os
import resource
import socket
import tempfile
from pathlib import Path

import pytest

from cluster.live.ray_session import LONGEST_SOCKET
from netem.helper.folder import NoSocketFolder, socket_folder
from netem.helper.session import LinkSession
from tests.support.commands import ENVIRONMENT, scout, started


@pytest.mark.parametrize("length", [20, 24, 25, 60, 80, 90, 94, 107, 108, 113, 200])
@pytest.mark.parametrize("name", ["/helper.sock", LONGEST_SOCKET])
def test_a_socket_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, name: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        given = Path(short) / ("x" * max(1, length - len(short) - 1))
        given.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(given))
        folder = Path(socket_folder("scout-link-", room=len(name)))
        try:
            bound = folder / name[1:]
            bound.parent.mkdir(parents=True, exist_ok=True)
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(bound))
            assert folder.stat().st_mode & 0o777 == 0o700
            fits = len(os.fsencode(given)) + len("/scout-link-12345678") + len(name) <= 107
            assert (folder.parent == given) == fits, "where it is wanted, if that can be"
        finally:
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            folder.rmdir()


def test_without_any_place_tmpdir_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 113)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(NoSocketFolder, match=rf"at most 75 bytes; TMPDIR is {long}, .*set TMPDIR to a shorter one"):
        socket_folder("scout-link-", room=12, others=["/proc/nowhere"])


def test_a_link_starts_with_a_long_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 113)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    session = LinkSession.start("paced", agents=1, workers=1, channel_mbps=10, grant_mbps=5)
    try:
        assert Path(session.socket_path).exists()
    finally:
        session.stop()


def test_a_simulation_needs_nothing_of_the_environment(tmp_path: Path) -> None:
    strange = {"RAY_ADDRESS": "ray://nobody.invalid:1", "http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "::"}
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "HOME"} | strange
    done = scout("run", "congestion", "--engine", "simulated", "--out", tmp_path / "run", environment=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/ledger.parquet").exists()


def test_a_dead_ray_address_is_named(tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"RAY_ADDRESS": "127.0.0.1:9"}
    done = scout("run", "congestion", "--engine", "live", "--out", tmp_path / "run", environment=environment)
    assert done.returncode == 2
    assert "127.0.0.1:9" in done.stderr and "ray start --head" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_simulation_is_content_with_64_files(tmp_path: Path) -> None:
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))  # noqa: E731
    process = started("run", "congestion", "--engine", "simulated", "--out", str(tmp_path / "run"), preexec_fn=few)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
