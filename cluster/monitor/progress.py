"""Progress of a run on standard error: a status line or a full view on a terminal, plain lines elsewhere."""

import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cluster.monitor.terminal_view import render
from cluster.monitor.watcher import RunWatcher
from cluster.run_folder.jsonl import Tail
from cluster.scenario.schema import Scenario
from reports import files

TERMINAL_PERIOD_S = 0.5
LIVE_PERIOD_S = 0.25
LOG_PERIOD_S = 10.0


class _Background:
    """A task in its own thread for the duration of a run."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        raise NotImplementedError


class Watched(_Background):
    """Shows the run by `cluster.monitor.terminal_view`; reads files only, so it can't disturb the actors."""

    def __init__(self, run_dir: Path, console: Console) -> None:
        super().__init__()
        self._console = console
        self._watcher = RunWatcher(run_dir)

    def _watch(self) -> None:
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while not self._done.wait(LIVE_PERIOD_S):
                live.update(render(self._watcher.snapshot()), refresh=True)


class Progress(_Background):
    """Counts ended requests from the growing journals; reads files only, so it can't disturb the actors."""

    def __init__(self, scenario: Scenario, run_dir: Path, console: Console) -> None:
        super().__init__()
        self._planned = len(scenario.schedule())
        self._allocators = scenario.allocator_names
        self._run_dir = run_dir
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in scenario.allocator_names}
        self._tails: dict[Path, Tail] = {}
        self._console = console

    def _watch(self) -> None:
        if self._console.is_terminal:
            with self._console.status("starting") as status:
                while not self._done.wait(TERMINAL_PERIOD_S):
                    if line := self._line():
                        status.update(Text(line))
            return
        shown, due_s = "", time.monotonic() + LOG_PERIOD_S
        while not self._done.wait(TERMINAL_PERIOD_S):
            if time.monotonic() >= due_s and (line := self._line()) != shown:
                self._console.print(line, highlight=False)
                shown, due_s = line, time.monotonic() + LOG_PERIOD_S

    def _line(self) -> str:
        parts = []
        for name in self._allocators:
            counts = self._counts[name]
            for path in files.turn_journal(self._run_dir, name).glob(files.TURN_REQUESTS):
                entries = self._tails.setdefault(path, Tail(path)).objects()
                counts.update(entry["status"] for entry in entries if "status" in entry)
            if counts:
                statuses = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
                parts.append(f"{name}: {counts.total()} of {self._planned} ended ({statuses})")
        return " | ".join(parts)
