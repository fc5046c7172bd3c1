"""Runs of one scenario, live or simulated: `scout run`, and `scout.run` in Python."""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from cluster.api.errors import InputError, Interrupted, UnavailableError, input_errors
from cluster.api.results import RunResults
from cluster.api.scenarios import AnyAllocator, AnyScenario, load_scenario
from cluster.interrupts import Interrupts
from cluster.monitor.progress import Reporting
from cluster.run_folder import folder as run_folder
from cluster.scenario.schema import Scenario
from cluster.simulated.engine import Ended, run_simulated
from reports.schema import Summary

Engine = Literal["live", "simulated"]
T = TypeVar("T")
HANDLERS_WAIT_S = 0.2
"""A signal that another thread got wakes nobody: its handler runs when this thread next does something."""
ONE_AT_A_TIME = threading.RLock()
"""A run has the process's signal handlers, garbage collector and connection to Ray to itself."""


def run(
    scenario: AnyScenario,
    *,
    engine: Engine = "live",
    allocators: Sequence[AnyAllocator] | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    address: str | None = None,
    progress: bool | Reporting | None = None,
) -> RunResults:
    """Run a scenario: one turn for each allocator, with the same arrivals and channel.

    In a notebook, or wherever an event loop is running, the run is in a thread of its own, and this call waits for it.
    Of calls in several threads one runs at a time.

    Args:
        scenario: a file, the name of a scenario that ships with Scout, a mapping with a scenario's keys, or a
            `Scenario`. Relative paths in it start in its file's folder, else in the working directory.
        engine: `live`: Ray actors on real links; `simulated`: virtual time and a fluid link.
        allocators: instead of the scenario's: names, mappings with an allocator's keys, or policy classes.
        overrides: values instead of the scenario's by key, such as `{"uplink.channel.mbps": 100}`; a number in a key
            is an index.
        out: the run folder, new or empty; default: `runs/<time>-<scenario>`.
        address: a running Ray cluster, or `auto`; default: the one that this process is connected to, else RAY_ADDRESS,
            else a new local one. Live runs only.
        progress: whether to tell on standard error how the run goes; default: only on a terminal or in a notebook.

    Raises:
        InputError: the scenario, an override, an allocator or the folder is wrong.
        UnavailableError: this machine or its Ray can't run it live.
        Interrupted: Ctrl-C or SIGTERM; its `results` are what there is, marked as partial. It is a KeyboardInterrupt.
        KeyboardInterrupt: the same before anything ran; there is no run folder.
    """
    check_engine(engine)
    reporting = progress if isinstance(progress, Reporting) else Reporting.to(progress)
    with ONE_AT_A_TIME, Interrupts() as interrupts:
        with input_errors():
            loaded = load_scenario(scenario, allocators, overrides)
            run_dir = run_folder.create(Path(out) if out is not None else None, loaded)
        summary = run_one(loaded, run_dir, engine, address, reporting, interrupts)
    results = RunResults(run_dir, summary)
    if interrupts.come:
        raise Interrupted(results)
    return results


def check_engine(engine: str) -> None:
    """Raises InputError: there is no such engine."""
    if engine not in ("live", "simulated"):
        raise InputError(f"no engine {engine!r}; there are live, simulated")


def run_one(
    scenario: Scenario, run_dir: Path, engine: Engine, address: str | None, reporting: Reporting, interrupts: Interrupts
) -> Summary:
    """Run into a folder that was just made; it is removed again if nothing ran.

    Raises:
        UnavailableError, KeyboardInterrupt: nothing ran.
    """

    def simulate() -> Summary:
        return run_simulated(scenario, run_dir, None, interrupts, partial(_bar, scenario, reporting))

    def run_live() -> Summary:
        return _run_live(scenario, run_dir, address, reporting, interrupts)

    try:
        return beside_loops(simulate if engine == "simulated" else run_live)
    except (UnavailableError, KeyboardInterrupt):
        run_folder.discard(run_dir)
        raise


def _bar(scenario: Scenario, reporting: Reporting, ended: Ended) -> AbstractContextManager[object]:
    requests = len(scenario.schedule()) * len(scenario.allocators)
    return reporting.bar(f"{scenario.name}, simulated", requests, ended)


def _run_live(
    scenario: Scenario, run_dir: Path, address: str | None, reporting: Reporting, interrupts: Interrupts
) -> Summary:
    """Raises as `run_one` does."""
    from cluster.live.launch import run_live
    from cluster.live.placement import PlacementError
    from cluster.live.preflight import ModelsUnavailable
    from cluster.live.ray_session import RayUnavailable
    from netem.helper.session import LinkUnavailable

    try:
        return run_live(scenario, run_dir, address, reporting.line, interrupts, reporting.live(scenario, run_dir))
    except (ModelsUnavailable, PlacementError, RayUnavailable, LinkUnavailable) as error:
        raise UnavailableError(str(error)) from None


def beside_loops(work: Callable[[], T]) -> T:
    """Do the work here; where an event loop is running, as in a notebook, in a thread of its own.

    Interrupts meanwhile are for the work to take: they are told by the signal handlers of this thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work()
    with ThreadPoolExecutor(1, "scout") as own:
        future = own.submit(contextvars.copy_context().run, work)
        while not future.done():
            with suppress(KeyboardInterrupt):  # the handler has told the work
                wait([future], HANDLERS_WAIT_S)
        return future.result()
