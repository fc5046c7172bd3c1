"""Progress of a run on standard error: a status line or a full view on a terminal, plain lines elsewhere."""

import importlib.util
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import progress as bars
from rich.console import Console
from rich.live import Live
from rich.text import Text

from cluster.monitor.terminal_view import render
from cluster.monitor.watcher import RunWatcher
from cluster.run_folder.jsonl import Tail
from cluster.scenario.schema import Scenario
from reports import files
from reports.terminal import PlainConsole

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


class Bar(_Background):
    """A bar for a terminal or a notebook, gone at the end.

    Args:
        done: how many of `total` are done so far; called in another thread.
    """

    def __init__(self, console: Console, title: str, total: int, done: Callable[[], int]) -> None:
        super().__init__()
        self._console = console
        self._title = title
        self._total = total
        self._so_far = done

    def _watch(self) -> None:
        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn())
        with bars.Progress(*columns, bars.TimeRemainingColumn(), console=self._console, transient=True) as shown:
            bar = shown.add_task(self._title, total=self._total)
            while not self._done.wait(LIVE_PERIOD_S):
                shown.update(bar, completed=self._so_far())


@dataclass(frozen=True)
class Reporting:
    """How the user of a run is told of its progress.

    Attributes:
        console: None: not at all.
        in_logs: whether also where nobody watches, in lines.
        full: whether a live run is shown by `Watched` on a terminal.
    """

    console: Console | None = None
    in_logs: bool = False
    full: bool = False

    @classmethod
    def to(cls, wanted: bool | None) -> "Reporting":
        """On standard error if wanted; None: where a person watches."""
        return cls(None if wanted is False else PlainConsole(stderr=True), in_logs=wanted is True)

    @property
    def watched(self) -> bool:
        """Whether a person watches: on a terminal, or in a notebook that can show what changes."""
        if self.console is None:
            return False
        return self.console.is_terminal or (
            self.console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        )

    def line(self, text: str) -> None:
        """Tell what has happened."""
        if self.console is not None and (self.in_logs or self.watched):
            self.console.print(text, highlight=False)

    def live(self, scenario: Scenario, run_dir: Path) -> AbstractContextManager[object]:
        """To be entered while a live run is on."""
        if self.console is None or not (self.in_logs or self.watched):
            return nullcontext()
        return (
            Watched(run_dir, self.console) if self.full and self.watched else Progress(scenario, run_dir, self.console)
        )

    def bar(self, title: str, total: int, done: Callable[[], int]) -> AbstractContextManager[object]:
        """To be entered while `done` counts up to `total`."""
        return Bar(self.console, title, total, done) if self.console is not None and self.watched else nullcontext()
