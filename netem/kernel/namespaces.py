"""Namespaces by system call: anonymous network namespaces held by a descriptor, and user namespaces.

An anonymous namespace lives exactly as long as something holds it (a descriptor, a process, a socket inside it), so
nothing is left behind when a process ends, even if it is killed. All calls act on the calling thread: use them in
single-threaded processes only (elsewhere the kernel refuses `unshare(CLONE_NEWUSER)`).
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1


def _call(name: str, *arguments: int) -> None:
    # Looked up at call time, so that this module imports where the C library lacks these calls.
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Move the calling process into new namespaces. Raises OSError."""
    _call("unshare", flags)


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel send SIGTERM when the thread that started this process ends; exit now if it already has."""
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0)
    if os.getppid() != parent_pid:  # the parent died before prctl took effect
        os._exit(1)


def enter_user_namespace() -> None:
    """Gain all capabilities over new namespaces, without privilege.

    Also moves to a network namespace owned by the new user namespace, which is required for returning from one made
    later. User and group ids stay the same inside, so that peer credentials on unix sockets do too.
    Raises OSError if the machine forbids it.
    """
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | CLONE_NEWNET)
    Path("/proc/self/setgroups").write_text("deny")  # required before an unprivileged gid_map
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


class NetworkNamespace:
    """An anonymous network namespace, held by the descriptor `fd`."""

    def __init__(self, sysctls: Mapping[str, str] | None = None) -> None:
        """Make the namespace and write `sysctls` (paths below /proc/sys/net) in it.

        A sysctl that this machine lacks, or that a container mounts read-only, is skipped: callers must not depend on
        any of them. Raises OSError if the namespace can't be made.
        """
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            unshare(CLONE_NEWNET)
            self.fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            for name, value in (sysctls or {}).items():
                with contextlib.suppress(OSError):
                    Path("/proc/sys/net", name).write_text(value)
        finally:
            _call("setns", home, CLONE_NEWNET)
            os.close(home)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Enter the namespace for a `with` block; a socket made inside stays in the namespace."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", self.fd, CLONE_NEWNET)
            try:
                yield
            finally:
                _call("setns", home, CLONE_NEWNET)
        finally:
            os.close(home)

    def close(self) -> None:
        os.close(self.fd)
