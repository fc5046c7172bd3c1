"""`scout run --live` on a terminal of a certain size."""

import os
import pty
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.commands import ENVIRONMENT, scout, started

Write = Callable[..., Path]


def on_a_terminal(columns: int, lines: int, *arguments: str | Path) -> tuple[int, str]:
    """The exit code, and everything that was written to a terminal, without its control sequences."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, True)
    size = {"COLUMNS": str(columns), "LINES": str(lines), "TERM": "xterm"}
    process = started(*arguments, environment=ENVIRONMENT | size, stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    written = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the last one who had it open is gone
            break
        if not piece:
            break
        written += piece
    os.close(ours)
    return process.wait(60), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode(errors="replace"))


def test_the_whole_run_is_on_the_terminal_while_it_is_on(ray_head: str, scenario: Write, tmp_path: Path) -> None:
    arguments = ["run", scenario(), "--live", "--out", tmp_path / "run", "--address", ray_head]
    code, shown = on_a_terminal(110, 40, *arguments)
    assert code == 0, shown[-2000:]
    for words in ("turn 1 of 2: equal", "turn 2 of 2: model_aware", "channel", "estimate", "on the uplink", "% met"):
        assert words in shown, words
    assert re.search(r"0\s+tiny-profiles.yaml/small\s+\w+\s+[\d.]+", shown), "agents with mode and share"
    assert "run folder:" in shown


def test_a_simulated_run_can_t_be_watched(scenario: Write, tmp_path: Path) -> None:
    done = scout("run", str(scenario()), "--live", "--engine", "simulated", "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and "--live shows live runs" in done.stderr and not (tmp_path / "run").exists()
