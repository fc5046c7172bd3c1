"""Policies of other packages: by module and class, by entry point; each mistake is one clear line."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import allocator.policies
from allocator.policies import make_policy, policy_names
from allocator.problem import Problem

SOURCE = """
from allocator.problem import Solution

class Mine:
    name = "mine"
    static_shares = False
    minimum_rate = False
    def solve(self, problem):
        return Solution({}, {7: problem.uplink_mbps})

class Choosy(Mine):
    def __init__(self, how): ...

class Empty: ...
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "others_policies.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "others_policies", raising=False)


def test_by_module_and_class() -> None:
    policy = make_policy("others_policies:Mine")
    assert policy.name == "mine" and policy.solve(Problem(3, (), ())).grants_mbps == {7: 3}


def test_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("theirs", "others_policies:Mine", "scout.policies")

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [entry] if group == "scout.policies" and name in (None, "theirs") else []

    monkeypatch.setattr(allocator.policies, "entry_points", entry_points)
    assert make_policy("theirs").name == "mine"
    assert "theirs" in policy_names()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Mine", "can't import module 'no_such_module'"),
        (":Mine", "can't import module ''"),
        ("others_policies:Nobody", "module 'others_policies' has no class 'Nobody'"),
        ("others_policies:", "has no class ''"),
        ("others_policies:Solution.x", "has no class 'Solution.x'"),
        ("others_policies:Choosy", "must be made without arguments"),
        ("others_policies:Empty", "is not a policy, it has no name and no solve"),
    ],
)
def test_mistakes_are_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        make_policy(name)
    assert "\n" not in str(raised.value)
