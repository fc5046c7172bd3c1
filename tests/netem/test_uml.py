"""Delay, jitter, loss and reordering on a kernel that has them, whatever this machine's has: one that is a process.

Boots user-mode Linux (Debian's package `user-mode-linux`) once, with this repository in it, and runs `uml/checks.py`.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.simulated.fluid_link import FluidLink, FluidUplink
from cluster.simulated.tcp_model import AgentPath, Window
from models.clock import now_s
from netem.impairments import Impairment, Impairments, LinkImpairments, Loss
from netem.wire import wire_bytes
from tests.netem.uml.checks import CHECKS, TRANSFER_BYTES, TRANSFER_MBPS, TRANSFERS
from tests.support.virtual import virtually

ROOT = Path(__file__).parents[2]
BOOT_TIMEOUT_S = 400  # two minutes on an idle machine
pytestmark = [pytest.mark.timeout(BOOT_TIMEOUT_S + 50), pytest.mark.measuring]
MEMORY_MB = 512
INIT = """#!/bin/sh
cd {root} && export PYTHONDONTWRITEBYTECODE=1
exec {python} -m tests.netem.uml.inside {out} > {log} 2>&1
"""


def preload(folder: Path) -> str:
    """What user-mode Linux needs on CPUs with more registers than it knows of; or skip."""
    if " amx_tile" not in Path("/proc/cpuinfo").read_text():
        return ""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("user-mode Linux needs uml/xstate.c on this CPU (AMX), and there is no C compiler")
    library = folder / "xstate.so"
    source = Path(__file__).parent / "uml" / "xstate.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    return str(library)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every check measured and found wrong, by name."""
    uml = shutil.which("linux.uml")
    if not uml or platform.machine() != "x86_64":
        pytest.skip("no user-mode Linux here: apt-get install user-mode-linux")
    folder = tmp_path_factory.mktemp("uml")
    out, log, init = folder / "results.jsonl", folder / "log", folder / "init"
    init.write_text(INIT.format(root=ROOT, python=sys.executable, out=out, log=log))
    init.chmod(0o755)
    environment = os.environ | {"LD_PRELOAD": preload(folder)}
    if shutil.disk_usage("/dev/shm").free < 2 * MEMORY_MB << 20:  # where its memory is, as a file: small in containers
        environment["TMPDIR"] = str(folder)
    # Its clock is the machine's: where others compute as well, everything would be late.
    command = ["nice", "-n", "-19"] if os.geteuid() == 0 else []
    command += [uml, f"mem={MEMORY_MB}M", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}"]
    command += ["con=null", "con0=fd:0,fd:1"]
    try:
        booted = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=BOOT_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"user-mode Linux was not done after {BOOT_TIMEOUT_S} s; it said: {_end(log)}")
    if not log.exists():
        said = (booted.stdout + booted.stderr).strip().splitlines()
        pytest.skip(f"user-mode Linux doesn't come up here: {' / '.join(said[-3:])}")
    found = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if len(found) < len(CHECKS):
        pytest.fail(f"user-mode Linux ended after {len(found)} of {len(CHECKS)} checks; it said: {_end(log)}")
    return {each["name"]: each for each in found}


def simulated_ms(rtt_ms: float, loss: float) -> tuple[float, float]:
    """The first transfer of a connection and a later one, as the simulated engine has them."""
    found: list[float] = []

    async def main() -> None:
        way = Impairment(delay_ms=rtt_ms / 2, loss=Loss(percent=loss) if loss else None)
        own = LinkImpairments(up=way, down=Impairment(delay_ms=rtt_ms / 2))
        path = AgentPath.of(Impairments.of_groups(LinkImpairments(), [(1, own)]), 0)
        link = FluidLink(1000, TRANSFER_MBPS)
        uplink = FluidUplink(0, link, [], path)
        window = Window(path, "reno") if path.impaired else None
        for _ in range(2):
            began_s = now_s()
            await uplink._carry(wire_bytes(TRANSFER_BYTES), None, window)
            found.append((now_s() - began_s) * 1e3 + rtt_ms / 2)

    virtually(main)
    return found[0], found[1]


@pytest.mark.parametrize(("rtt_ms", "loss"), TRANSFERS)
def test_simulated_transfers_take_what_the_kernel_s_take(rtt_ms: float, loss: float, results: dict[str, Any]) -> None:
    measured = results["transfers"]["measured"][f"{rtt_ms} ms, {loss} %"]
    first_ms, later_ms = simulated_ms(rtt_ms, loss)
    print(f"kernel: {measured}; simulated: {first_ms:.0f} and {later_ms:.0f} ms")
    if loss:  # a mean of six, of which each is chance's
        assert later_ms == pytest.approx(measured["later_ms"], rel=0.5)
    else:
        assert (first_ms, later_ms) == pytest.approx((measured["first_ms"], measured["later_ms"]), rel=0.15)


def _end(log: Path) -> str:
    return log.read_text()[-2000:] if log.exists() else "nothing"


@pytest.mark.parametrize("name", CHECKS)
def test_on_a_kernel_with_netem(name: str, results: dict[str, Any]) -> None:
    result = results[name]
    print(f"{result['took_s']} s, measured: {json.dumps(result['measured'])}")
    assert not result["wrong"], result["wrong"]
