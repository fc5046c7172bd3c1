"""The machine behind a result: one description for run folders and all benches."""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from reports.schema import Machine
from reports.terminal import printable

PACKAGES = (
    "scout-emulator",
    "ray",
    "pyroute2",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "pydantic",
    "torch",
    "transformers",
)


def describe_machine() -> Machine:
    """Hardware and versions, now. The GPU's name only in a process that uses torch: loading it takes seconds."""
    return Machine(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command_line(),
        python=platform.python_version(),
        kernel=kernel_series(platform.release()),
        machine=platform.machine(),
        cpu=_cpu_name(),
        cpus=os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpu=_gpu_name(),
        versions={package: version_of(package) for package in PACKAGES},
    )


def kernel_series(release: str) -> str:
    """Major and minor version: the rest of a kernel's name says whose machine it is, not how it behaves."""
    return ".".join(release.split(".")[:2])


def version_of(package: str) -> str:
    """The version of an installed package, or that it isn't installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"  # such as scout-emulator in a Ray job, which runs from its working directory


def command_line() -> str:
    """This process's command, by the program's name: where it is installed says nothing about a result."""
    program = Path(sys.argv[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return printable(f"{name} {shlex.join(sys.argv[1:])}".strip())


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _gpu_name() -> str | None:
    if "torch" not in sys.modules:
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
