"""The doctor's questions: answered anywhere, with a remedy for every lack."""

import os
import sys

import pytest

from netem.checks.capabilities import probe


def test_every_lack_has_a_remedy_and_nothing_is_left() -> None:
    namespace = os.readlink("/proc/self/ns/net") if sys.platform == "linux" else ""
    found = {capability.name: capability for capability in probe()}
    assert {"linux", "link"} <= set(found)
    for capability in found.values():
        assert capability.detail
        assert capability.available or capability.remedy, capability
    if namespace:
        assert os.readlink("/proc/self/ns/net") == namespace
        assert {"root", "user namespaces", "sudo -n", "HTB", "TBF", "u32", "pfifo", "netem", "ifb"} <= set(found)


def test_elsewhere_than_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert [capability.available for capability in probe()] == [False, False]
