"""The first process of a user-mode Linux: makes it fit for links, runs the checks, and turns it off."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

MODULES = Path("/usr/lib/uml/modules")
NEEDED = (
    "drivers/net/veth",
    "drivers/net/ifb",
    "net/sched/sch_htb",
    "net/sched/cls_u32",
    "net/sched/sch_ingress",
    "net/sched/act_mirred",
    "net/sched/sch_netem",
)
FINIT_MODULE = 313  # x86-64
POWER_OFF = 0x4321FEDC

libc = ctypes.CDLL(None, use_errno=True)


def must(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    for kind, where in ((b"proc", b"/proc"), (b"sysfs", b"/sys"), (b"tmpfs", b"/run")):
        must(libc.mount(kind, where, kind, 0, None), f"mount {where.decode()}")
    for name in NEEDED:
        with open(MODULES / platform.release() / "kernel" / f"{name}.ko", "rb") as module:
            must(libc.syscall(FINIT_MODULE, module.fileno(), b"", 0), name)
    subprocess.run([sys.executable, "-m", "tests.netem.uml.checks", sys.argv[1]], check=True)


if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.sync()
        libc.reboot(POWER_OFF)
