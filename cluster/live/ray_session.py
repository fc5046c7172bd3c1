"""A run's connection to Ray: a private or an existing cluster, its nodes, actors on them, one-line error messages."""

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
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray._private.state import available_resources_per_node  # Ray has no public one
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.live.nodes import Node
from cluster.live.placement import Spot
from cluster.live.ray_reaper import Reaper
from netem.helper.folder import NoSocketFolder, socket_folder

# Actors exchange only small messages, payloads go over the link; by default Ray would reserve 30 % of the memory.
OBJECT_STORE_BYTES = 128 * 2**20
LONGEST_SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # in the folder of a cluster

SHUTDOWN_S = 1.5
CONNECT_TIMEOUT_S = 3.0
T = TypeVar("T")

NO_CLUSTER = "is `ray start --head` running? Without --address and RAY_ADDRESS, scout starts its own Ray"


class RayUnavailable(RuntimeError):
    """Ray can't be started or reached; the message says what to do."""


@dataclass(frozen=True, slots=True)
class RaySession:
    """A connection to Ray, with this node's free CPUs and GPUs and its total number of GPUs.

    Attributes:
        started: every actor that was started on it.
    """

    node_id: str
    cpus: float
    gpus: float
    gpus_in_all: float
    started: list[ActorHandle] = field(default_factory=list)

    def start(self, actor_class: Any, spot: Spot, *args: Any) -> ActorHandle:
        """Start an actor at its spot, by default on this node: sockets can only be passed within one machine."""
        options = {"num_cpus": spot.cpus, "num_gpus": spot.gpus, "scheduling_strategy": self.on(spot.node_id)}
        actor = actor_class.options(**options).remote(*args)
        self.started.append(actor)
        return actor

    def on(self, node_id: str | None) -> NodeAffinitySchedulingStrategy:
        """For a task or an actor that must be on this node (None: the driver's), or not at all."""
        return NodeAffinitySchedulingStrategy(node_id or self.node_id, soft=False)

    def nodes(self) -> list[Node]:
        """The cluster's nodes that are alive."""
        free = available_resources_per_node()
        return [
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                node["NodeManagerHostname"],
                node.get("Labels") or {},
                node["Resources"],
                free.get(node["NodeID"], {}),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]


def _check_reachable(address: str) -> None:
    """Check that something listens at `address`, since Ray would retry for minutes. Raises RayUnavailable."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise RayUnavailable(f"Ray: {address!r} is not `auto` or host:port, as `ray start --head` prints it")
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError):
        raise RayUnavailable(f"Ray: nothing answers at {address}; {NO_CLUSTER}") from None


def in_words(error: Exception, hint: str) -> str:
    """The first line of Ray's error message, with a remedy."""
    text = str(error).strip()
    first_line = (text.splitlines() or [type(error).__name__])[0].rstrip(".")
    if "token" in text.lower() or "auth" in text.lower():
        hint = "the cluster wants a token: set RAY_AUTH_MODE=token here as where `ray start` ran"
    return f"Ray: {first_line}; {hint}" if hint else f"Ray: {first_line}"


@contextmanager
def ray_session(address: str | None) -> Iterator[RaySession]:
    """A connection to Ray. A private cluster ends with it, all its processes included, even if this process is killed.

    Where this process is connected already (after `ray.init`, in a Ray task), that connection is taken, and left as it
    was but for the run's actors.

    Args:
        address: of a running cluster, or `auto`; None uses RAY_ADDRESS if set (as inside a Ray job), else starts a
            private cluster.

    Raises:
        RayUnavailable: Ray can't be started or reached; the message holds a remedy.
    """
    if ray.is_initialized():
        if address not in (None, "auto"):
            raise RayUnavailable("Ray: this process is connected to a cluster already; leave the address out")
        session = _session()
        try:
            yield session
        finally:
            for actor in session.started:
                ray.kill(actor)
        return
    address = address or os.environ.get("RAY_ADDRESS")
    with nullcontext() if address else Reaper(_folder()) as reaper:
        try:
            yield _connect(address, reaper.folder if reaper else None)
        finally:
            # Ray's shutdown is slow while Ray starts or if its GCS is dead; the reaper ends the remaining processes.
            try:
                _in_daemon_thread(ray.shutdown).result(SHUTDOWN_S)
            except TimeoutError:
                atexit.unregister(ray.shutdown)  # a second shutdown would wait for the first


def _folder() -> str:
    """A folder for a private cluster. Raises RayUnavailable."""
    try:
        return socket_folder("scout-ray-", room=len(LONGEST_SOCKET))
    except NoSocketFolder as error:
        raise RayUnavailable(f"Ray: {error}") from None


def _in_daemon_thread(call: Callable[[], T]) -> "Future[T]":
    """Run `call` in a daemon thread that lives until the process ends.

    The thread must outlive the call: Ray's processes die with their parent, which for the kernel is the thread that
    started them.
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
    """Join the cluster at `address`, or start one with all its files in `folder`."""
    if address and address != "auto":
        _check_reachable(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Silences a warning about actors without GPUs; ours request the GPUs that they use.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not address:
        # By default Ray runs workers at the lowest priority, which makes agents late on a busy machine.
        options |= {"include_dashboard": False, "_temp_dir": folder, "_system_config": {"worker_niceness": 0}}
        options["object_store_memory"] = OBJECT_STORE_BYTES

    def join() -> RaySession:
        ray.init(address or "local", **options)
        return _session()

    joining = _in_daemon_thread(join)  # in another thread: an interrupt inside ray.init may block for ever
    try:
        return joining.result()
    except KeyboardInterrupt:
        if not joining.done():
            logging.disable()
            atexit.register(_leave)
        raise
    except Exception as error:
        raise RayUnavailable(in_words(error, NO_CLUSTER if address else "")) from None


def _session() -> RaySession:
    """The connection that this process has."""
    node_id = ray.get_runtime_context().get_node_id()
    node = next(n["Resources"] for n in ray.nodes() if n["NodeID"] == node_id)
    free = ray.available_resources()  # of the whole cluster: Ray doesn't report it by node
    cpus, gpus = (min(node.get(kind, 0.0), free.get(kind, 0.0)) for kind in ("CPU", "GPU"))
    return RaySession(node_id, cpus, gpus, node.get("GPU", 0.0))


def _leave() -> None:
    """Exit an interrupted process while Ray is still starting; a normal exit would crash Python."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signal.SIGINT)
