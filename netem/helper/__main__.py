"""The helper process: the only privileged part, and the owner of all namespaces and all shaping.

`session.LinkSession` starts it; it is not meant to be run by hand. It runs until its standard input closes. When it
ends, even if it is killed, the kernel removes all its namespaces. Its only line on standard output says whether it is
ready: `{"ready": true, "link": "kernel", "privilege": "root", "pid": 123}` or `{"ready": false, "error": "..."}`.
"""

import argparse
import contextlib
import errno
import json
import os
import resource
import selectors
import signal
import sys
from pathlib import Path

from netem.helper import protocol
from netem.helper.server import Server
from netem.kernel import namespaces
from netem.kernel.kernel_link import KernelLink
from netem.link import Link, LinkError
from netem.paced import PacedLink


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m netem.helper", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="the socket path, in a directory of its own")
    parser.add_argument("--uid", type=int, required=True, help="the user whose processes may connect")
    parser.add_argument("--link", choices=["kernel", "paced"], required=True)
    parser.add_argument("--privilege", choices=["root", "userns", "sudo", "none"], required=True)
    parser.add_argument("--parent", type=int, help="the parent process, with which the helper ends")
    return parser.parse_args()


def main() -> int:
    """Serve until standard input closes or SIGTERM arrives. Returns 1 if this machine can't shape links."""
    arguments = _arguments()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the driver, which decides when to stop
    _raise_descriptor_limit()
    try:
        _acquire(arguments.link, arguments.privilege)
        server = _listen(arguments)
    except OSError as error:
        print(json.dumps({"ready": False, "error": explain(error)}), flush=True)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if arguments.parent:  # not earlier: entering a user namespace would reset it
        namespaces.die_with_parent(arguments.parent)
    ready = {"ready": True, "link": arguments.link, "privilege": arguments.privilege, "pid": os.getpid()}
    print(json.dumps(ready), flush=True)
    try:
        server.run()
    finally:
        # The session removes them too, unless its process was killed.
        with contextlib.suppress(OSError):
            arguments.socket.unlink()
            arguments.socket.parent.rmdir()
    return 0


def _listen(arguments: argparse.Namespace) -> Server:
    def build(request: protocol.Build, selector: selectors.BaseSelector) -> Link:
        if arguments.link == "paced":
            if request.impairments.active:
                raise LinkError("the paced link can't delay or lose packets")
            return PacedLink(request.agents, request.workers, request.channel_mbps, request.grant_mbps, selector)
        return KernelLink(
            request.agents,
            request.workers,
            request.channel_mbps,
            request.grant_mbps,
            request.congestion,
            request.impairments,
        )

    old_mask = os.umask(0o177)
    server = Server(arguments.socket, arguments.uid, build)
    os.umask(old_mask)
    if os.geteuid() != arguments.uid:
        os.chown(arguments.socket, arguments.uid, -1)

    def stop_at_end_of_input() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            server.stop()

    server.watch(sys.stdin.fileno(), stop_at_end_of_input)
    return server


def _acquire(link: str, privilege: str) -> None:
    """Acquire the privilege and test it by building the smallest link. Raises OSError."""
    if link == "paced":
        return
    if privilege == "userns":
        namespaces.enter_user_namespace()
    elif os.geteuid() != 0:
        raise PermissionError(errno.EPERM, f"privilege {privilege!r} needs user id 0")
    KernelLink(agents=1, workers=1, channel_mbps=1.0, grant_mbps=1.0).close()


def _raise_descriptor_limit() -> None:
    """Raise the limit: a run needs two descriptors per agent (paced: three per connection) and one per client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16384 if hard == resource.RLIM_INFINITY else min(hard, 16384)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def explain(error: OSError) -> str:
    """The error's text with a remedy for the user."""
    remedies = {
        errno.EPERM: "run as root, allow unprivileged user namespaces, or give the container CAP_SYS_ADMIN and "
        "CAP_NET_ADMIN",
        errno.EACCES: "run as root, or allow unprivileged user namespaces (on Ubuntu: sysctl "
        "kernel.apparmor_restrict_unprivileged_userns=0)",
        errno.ENOENT: "load the kernel modules that are missing: modprobe -a sch_htb cls_u32",
        errno.EOPNOTSUPP: "load the kernel modules that are missing: modprobe -a veth sch_htb cls_u32",
        errno.ENOSPC: "raise user.max_user_namespaces and user.max_net_namespaces (sysctl)",
        errno.EROFS: "mount /proc/sys writable (containers: run with --privileged, or with their own /proc)",
        errno.EMFILE: "raise the limit on open files (ulimit -n)",
    }
    remedy = remedies.get(error.errno or 0)
    return f"{error}; {remedy}" if remedy else str(error)


if __name__ == "__main__":
    sys.exit(main())
