"""Ray, as a run uses it: a cluster of its own or one that is there, actors on this node, errors in words."""

import atexit
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.live.ray_reaper import Reaper

# Actors exchange small messages only; payloads go over the link. Ray would reserve 30 % of the machine.
OBJECT_STORE_BYTES = 128 * 2**20


SHUTDOWN_S = 1.5
KNOCK_S = 3.0
T = TypeVar("T")

NO_CLUSTER = "is `ray start --head` running? Without --address and RAY_ADDRESS, scout starts its own Ray"


class RayUnavailable(RuntimeError):
    """Ray can't be started or reached; the message says what to do."""


@dataclass(frozen=True, slots=True)
class RaySession:
    """A connection to Ray, what this node has free, and how many GPUs it has in all."""

    node_id: str
    cpus: float
    gpus: float
    gpus_in_all: float

    def start(self, actor_class: Any, num_cpus: float, num_gpus: float, *args: Any) -> ActorHandle:
        """Start an actor on this node, because sockets are handed over inside one machine only."""
        here = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "scheduling_strategy": here}
        return actor_class.options(**options).remote(*args)


def _knock(address: str) -> None:
    """Ray tries an address where nobody answers for minutes; so ask first. Raises RayUnavailable."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise RayUnavailable(f"Ray: {address!r} is not `auto` or host:port, as `ray start --head` prints it")
    try:
        socket.create_connection((host, int(port)), KNOCK_S).close()
    except (OSError, OverflowError):
        raise RayUnavailable(f"Ray: nobody answers at {address}; {NO_CLUSTER}") from None


def in_words(error: Exception, hint: str) -> str:
    """The first line of what Ray says, and what to do about it."""
    text = str(error).strip()
    first_line = (text.splitlines() or [type(error).__name__])[0].rstrip(".")
    if "token" in text.lower() or "auth" in text.lower():
        hint = "the cluster wants a token: set RAY_AUTH_MODE=token here as where `ray start` ran"
    return f"Ray: {first_line}; {hint}" if hint else f"Ray: {first_line}"


@contextmanager
def ray_session(address: str | None) -> Iterator[RaySession]:
    """A connection to Ray; a cluster of our own ends with it, to its last process, however this process ends.

    Args:
        address: of a running cluster, or `auto`; None for RAY_ADDRESS if that is set (as it is inside a Ray job), else
            for a cluster of our own that ends with this process.

    Raises:
        RayUnavailable: with what to do about it.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    with nullcontext() if address else Reaper() as reaper:
        try:
            yield _connect(address, reaper.folder if reaper else None)
        finally:
            # With its GCS dead, or while it starts, Ray's own shutdown takes long; the reaper ends what is left then.
            try:
                _beside(ray.shutdown).result(SHUTDOWN_S)
            except TimeoutError:
                atexit.unregister(ray.shutdown)  # it would wait for the first one


def _beside(call: Callable[[], T]) -> "Future[T]":
    """Run `call` in a thread that nobody has to wait for, not even the interpreter at its end, to which it lives.

    Ray's processes are to die with their parent, which for the kernel is the thread that started them.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)
        threading.Event().wait()

    threading.Thread(target=run, daemon=True).start()
    return outcome


def _connect(address: str | None, folder: str | None) -> RaySession:
    """Join the cluster at `address`, or start one whose files are all in `folder`."""
    if address and address != "auto":
        _knock(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Warns on every start that a future Ray won't hide GPUs from actors without any; ours ask for what they use.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not address:
        # By default Ray runs its workers at the lowest priority, which makes agents late when the machine is busy.
        options |= {"include_dashboard": False, "_temp_dir": folder, "_system_config": {"worker_niceness": 0}}
        options["object_store_memory"] = OBJECT_STORE_BYTES

    def join() -> RaySession:
        ray.init(address or "local", **options)
        node_id = ray.get_runtime_context().get_node_id()
        node = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == node_id)
        free = ray.available_resources()  # of the whole cluster: what others use on this node can't be told apart
        cpus, gpus = (min(node.get(kind, 0.0), free.get(kind, 0.0)) for kind in ("CPU", "GPU"))
        return RaySession(node_id, cpus, gpus, node.get("GPU", 0.0))

    joining = _beside(join)  # not in this thread: interrupted in there, Ray may wait for ever
    try:
        return joining.result()
    except KeyboardInterrupt:
        if not joining.done():
            logging.disable()
            atexit.register(_leave)
        raise
    except Exception as error:
        raise RayUnavailable(in_words(error, NO_CLUSTER if address else "")) from None


def _leave() -> None:
    """End an interrupted process in which Ray is still starting: finalized under it, Python crashes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signal.SIGINT)
