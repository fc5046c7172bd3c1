"""This machine's capabilities for links, for `scout doctor`: each one is tried, and nothing is left behind."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from netem.helper.session import LinkSession, LinkUnavailable

TRIAL_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Capability:
    """One capability: whether it is available, the finding in words, and the remedy if it is missing (else empty)."""

    name: str
    available: bool
    detail: str
    remedy: str


# Kernel features: name -> (purpose, remedy). `netem.checks.trials` tries each under the same name.
FEATURES = {
    "network namespaces": ("one for each agent", "sysctl user.max_net_namespaces=4096"),
    "veth": ("joins the namespaces", "modprobe veth, or a kernel with CONFIG_VETH"),
    "HTB": ("shapes both hops", "modprobe sch_htb, or a kernel with CONFIG_NET_SCH_HTB"),
    "u32": ("tells the agents apart on the shared hop", "modprobe cls_u32, or a kernel with CONFIG_NET_CLS_U32"),
    "pfifo": ("queues what is being shaped", "a kernel with CONFIG_NET_SCHED"),
    "netem": (
        "delay, jitter, loss and reordering",
        "modprobe sch_netem (on Ubuntu from linux-modules-extra-$(uname -r)), or a kernel with CONFIG_NET_SCH_NETEM",
    ),
    "ifb": ("where netem holds what arrives", "modprobe ifb, or a kernel with CONFIG_IFB"),
    "act_mirred": ("takes it there", "modprobe -a sch_ingress act_mirred, or a kernel with CONFIG_NET_ACT_MIRRED"),
    "bridge": ("not used by Scout's own links", "modprobe bridge, or a kernel with CONFIG_BRIDGE"),
    "TBF": ("not used by Scout's own links", "modprobe sch_tbf, or a kernel with CONFIG_NET_SCH_TBF"),
}
USERNS_REMEDY = (
    "sysctl user.max_user_namespaces=4096, kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu) or "
    "kernel.unprivileged_userns_clone=1 (Debian); not needed for root"
)


def probe() -> list[Capability]:
    """Try all features in scratch namespaces of child processes. Takes about half a second; raises nothing."""
    if sys.platform != "linux":
        return [
            Capability("linux", False, sys.platform, "live links need Linux; simulated runs work anywhere"),
            Capability("link", False, "none: not Linux", "use the simulated engine"),
        ]
    is_root = os.geteuid() == 0
    userns = _try_features("userns")
    works = "failed" not in userns
    features = _try_features("root") if is_root else userns
    if "failed" in features:
        features = userns
    return [
        Capability("linux", True, os.uname().release, ""),
        Capability("root", is_root, f"user id {os.geteuid()}", "" if is_root else "not needed if user namespaces work"),
        Capability("user namespaces", works, userns.get("failed", "work"), "" if works else USERNS_REMEDY),
        _sudo(),
        *(_feature(name, features) for name in FEATURES),
        _link(),
    ]


def _feature(name: str, tried: dict[str, str]) -> Capability:
    purpose, remedy = FEATURES[name]
    failure = tried.get(name, "not tried: " + tried.get("failed", "the trial ended early"))
    if failure:
        return Capability(name, False, f"{purpose}: {failure}", remedy)
    return Capability(name, True, purpose, "")


def _sudo() -> Capability:
    remedy = "not needed for root or if user namespaces work; else run `sudo -v` before"
    if not shutil.which("sudo"):
        return Capability("sudo -n", False, "not installed", remedy)
    done = subprocess.run(["sudo", "-n", "true"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        return Capability("sudo -n", False, done.stderr.strip(), remedy)
    return Capability("sudo -n", True, "works without a password", "")


def _link() -> Capability:
    """Find the kind of link that `auto` chooses, by building a small one."""
    try:
        with LinkSession.start(agents=1, workers=1, channel_mbps=1.0, grant_mbps=1.0) as session:
            if session.kind == "kernel":
                return Capability("link", True, f"kernel, by {session.privilege}", "")
            remedy = "live runs work, but pacing is less exact; install what is missing above"
            return Capability("link", False, f"paced: {session.fallback_reason}", remedy)
    except (LinkUnavailable, OSError) as error:
        return Capability("link", False, f"none: {error}", "install what is missing above")


def _try_features(privilege: str) -> dict[str, str]:
    """Map each feature to the reason why it doesn't work (empty if it does), or `failed` to why none could be tried.

    Runs in a child process, because entering namespaces needs a single thread and can't be undone.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "netem.checks.trials", privilege],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            timeout=TRIAL_TIMEOUT_S,
        )
        result: dict[str, str] = json.loads(done.stdout)
        return result
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return {"failed": f"the trial failed: {error}"}
