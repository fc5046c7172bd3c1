"""`scout bench policies`: every policy in every cell, on paired seeds, beside the bound; in parallel, and resumable."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path

from cluster.experiments.bound import percent_bound
from cluster.experiments.policy_cells import Plan
from cluster.run_folder.folder import RunFolderError, claim
from cluster.run_folder.ledger import assemble
from cluster.simulated.engine import SimulatedEngine
from reports import files, metrics
from reports.machine import command_line, describe_machine
from reports.schema import DocumentUnreadable, PolicyBench, PolicyScore, PolicyUnit

TRIVIAL = ("prompt_only", "equal", "local_only", "greedy")
POLICIES = ("deadline", *TRIVIAL, "model_aware")
PR_SET_PDEATHSIG = 1  # prctl(2)
WAIT_S = 0.2  # an interrupt is seen so soon


class WorkerDied(RuntimeError):
    """A process that ran a cell was killed; the message has a remedy."""


def begin(plan: Plan, out: Path) -> PolicyBench:
    """The document in folder `out`: a new one, or that of the same bench, to go on with.

    Raises:
        RunFolderError: the folder holds something else.
    """
    document = PolicyBench(
        command=command_line(),
        machine=describe_machine(),
        judged="deadline" if "deadline" in plan.policies else plan.policies[0],
        trivial=[name for name in TRIVIAL if name in plan.policies],
        policies=plan.policies,
        duration_s=plan.duration_s,
        seeds=plan.seeds,
        files={s.name: str(s.path) for s in (*plan.uplinks.values(), *plan.workloads.values()) if s.path},
        cells=plan.cells,
        units=[],
    )
    path = out / files.POLICIES
    if not path.exists():
        claim(out)
        document.write(path)
        return document
    try:
        earlier = PolicyBench.read(path)
    except (OSError, DocumentUnreadable) as error:
        raise RunFolderError(f"{path} can't be gone on with: {error}") from None
    same = ("policies", "duration_s", "seeds", "files", "cells")
    different = [key for key in same if getattr(earlier, key) != getattr(document, key)]
    if different:
        raise RunFolderError(f"{out} holds a bench with other {', '.join(different)}; choose another folder")
    return earlier


def run(
    plan: Plan,
    document: PolicyBench,
    out: Path,
    processes: int,
    stopped: Callable[[], bool],
    progress: Callable[[str], None],
) -> None:
    """Make the runs that `document` lacks, and write it after each. Ends early once `stopped` says so.

    Raises:
        WorkerDied: one of the processes was killed. What had been made is in the document.
    """
    made = {(unit.cell, unit.seed) for unit in document.units}
    left = [unit for unit in product(range(len(plan.cells)), plan.seeds) if unit not in made]
    for unit in _units(plan, left, processes, stopped):
        document.units = sorted([*document.units, unit], key=lambda u: (u.cell, u.seed))
        document.write(out / files.POLICIES)
        cell = document.cells[unit.cell]
        progress(f"{len(document.units)} of {document.planned()}: {cell.name()}, seed {unit.seed}")


def _units(
    plan: Plan, left: list[tuple[int, int]], processes: int, stopped: Callable[[], bool]
) -> Iterator[PolicyUnit]:
    """Runs as they end, at most twice as many at a time as there are processes."""
    if processes == 1:
        for cell, seed in left:
            if stopped():
                return
            yield _play(plan, cell, seed)
        return
    waiting = iter(left)
    with _pool(processes) as pool:
        going: set[Future[PolicyUnit]] = set()
        try:
            while not stopped():
                going |= {pool.submit(_play, plan, *unit) for unit in islice(waiting, 2 * processes - len(going))}
                if not going:
                    return
                done, going = wait(going, timeout=WAIT_S, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise WorkerDied("a process that ran a cell was killed; with less memory, use fewer --processes") from None


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that leave signals to this one, and are ended with it."""
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, context, _leave_signals, (os.getpid(),))
    try:
        yield pool
    finally:
        own = set(multiprocessing.active_children()) - before
        pool.shutdown(wait=False, cancel_futures=True)
        for process in own:
            process.terminate()
        for process in own:
            process.join()


def _leave_signals(parent: int) -> None:
    """SIGINT goes to all processes of a terminal; the first of them decides. Without it, the others end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _play(plan: Plan, cell: int, seed: int) -> PolicyUnit:
    """One run of all policies, and its bound."""
    scenario = plan.scenario(plan.cells[cell], seed)
    ledger = assemble(SimulatedEngine(scenario).run().turns, scenario, "its record was lost")
    scores = {
        str(name): PolicyScore(met=100 * metrics.compliance(rows), delivered=metrics.delivered_quality(rows))
        for name, rows in ledger.groupby("allocator", sort=False)
    }
    return PolicyUnit(
        cell=cell, seed=seed, requests=len(scenario.schedule()), scores=scores, bound=percent_bound(scenario)
    )
