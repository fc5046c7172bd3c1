"""`scout doctor`: this machine's capabilities, with a remedy for each missing one."""

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table
from rich.text import Text

from netem.checks.capabilities import Capability, probe

MEMORY_GIB = 4


def examine() -> list[Capability]:
    """Check Python, Ray, the machine, GPUs, then links. Takes about a second and leaves nothing behind."""
    return [_python(), _ray(), _machine(), _gpus(), *probe()]


def show(console: Console, findings: list[Capability]) -> None:
    """Print the findings as a table."""
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in ("", "what", "found", "if you need it"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        mark = Text("yes", style="green") if finding.available else Text("no", style="yellow")
        table.add_row(mark, finding.name, finding.detail, finding.remedy)
    console.print(table)


def _python() -> Capability:
    enough = sys.version_info >= (3, 11)
    return Capability("python", enough, platform.python_version(), "" if enough else "install Python 3.11 or newer")


def _ray() -> Capability:
    try:
        return Capability("ray", True, version("ray"), "")
    except PackageNotFoundError:
        return Capability("ray", False, "not installed", "pip install -e . -c constraints.txt")


def _machine() -> Capability:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    enough = gib >= MEMORY_GIB
    remedy = (
        "" if enough else f"Ray and a few agents want {MEMORY_GIB} GiB; raise agents.per_actor to need fewer processes"
    )
    return Capability("cores and memory", enough, f"{os.cpu_count()} cores, {gib:.1f} GiB", remedy)


def _gpus() -> Capability:
    remedy = "none needed: without GPUs, agents and workers run on their num_cpus"
    if not shutil.which("nvidia-smi"):
        return Capability("gpu", False, "no nvidia-smi", remedy)
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Capability("gpu", False, f"nvidia-smi failed: {error}", remedy)
    found = "; ".join(listed.stdout.strip().splitlines())
    return Capability("gpu", bool(found), found or "none", "" if found else remedy)
