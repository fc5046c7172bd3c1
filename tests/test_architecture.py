"""The house keeps its order: imports go downward without circles, Ray stays in its files, functions stay short."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each package may import itself and those after it; the last four import none of the others but what is here.
ORDER = ["scout", "cluster", "reports", "agents", "cloud", "models", "allocator", "kvcache", "netem", "configs"]
ALONE: dict[str, set[str]] = {
    "allocator": {"kvcache.modes"},
    "kvcache": set(),
    "netem": {"configs.reading", "configs.settings"},
}
# The rooms of a package, from the bottom up; rooms of one set are on one floor and don't import one another. Modules at
# a package's root that aren't named may import the lowest floor, and every room may import them.
ROOMS: dict[str, list[set[str]]] = {
    "cluster": [
        {"scenario"},
        {"processes", "wiring"},
        {"run_folder"},
        {"channel_player"},
        {"turn"},
        {"simulated", "live"},
        {"monitor"},
        {"experiments"},
        {"api"},
        {"cli"},
        {"__main__"},
    ],
    "netem": [
        {"wire", "fairness"},
        {"channels", "impairments", "link"},
        {"kernel", "paced"},
        {"helper"},
        {"relay"},
        {"checks"},
        {"bench"},
    ],
    "allocator": [{"problem"}, {"solver"}, {"policies"}, {"online"}, {"bench", "actor"}],
}
MAX_LINES, MAX_BRANCHES = 60, 15
BRANCHES = (
    *(ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.comprehension),
    *(ast.ExceptHandler, ast.BoolOp, ast.Assert, ast.match_case),
)
LONG_ON_PURPOSE = {
    "cluster/scenario/schema.py:_problems",  # a list of independent checks, each with its message
    "allocator/solver/enumerate.py:enumerate_choices",  # one enumeration; its steps share all of its values
}
FILES = [path for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    """A file's name as a module; a package's is its folder's."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes_at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Everything in a file but what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from nodes_at_run_time(child)


@cache
def imported(path: Path) -> frozenset[str]:
    """Modules that a file imports, anywhere in it: `a.b` for `from a import b` where that is a module, else `a`."""
    found: set[str] = set()
    for node in nodes_at_run_time(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module}
    return frozenset(found)


def packages_of(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    return {module.partition(".")[0] for module in imported(path)}


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_downward(package: str) -> None:
    allowed = {package} if package in ALONE else set(ORDER[ORDER.index(package) :])
    for path in (ROOT / package).rglob("*.py"):
        others = imported(path) - ALONE.get(package, set())
        assert {module.partition(".")[0] for module in others} & set(ORDER) <= allowed, path
        if package != "cluster" and path.name != "actor.py":
            assert "ray" not in packages_of(path), path


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_lower_ones(package: str) -> None:
    floors = {room: floor for floor, rooms in enumerate(ROOMS[package]) for room in rooms}

    def room_of(module: str) -> str:
        return module.split(".")[1] if module.count(".") else ""

    for path in (ROOT / package).rglob("*.py"):
        room = room_of(name_of(path))
        for module in imported(path):
            other = room_of(module)
            if module.partition(".")[0] == package and other != room:
                assert floors.get(other, -1) < floors.get(room, 1), f"{path.relative_to(ROOT)} imports {module}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: {module for module in imported(path) if module in MODULES} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_functions_are_short() -> None:
    """A longer one does two jobs, or is on the list with its reason."""
    found = {}
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                branches = sum(isinstance(part, BRANCHES) for part in ast.walk(node))
                if lines > MAX_LINES or branches > MAX_BRANCHES:
                    found[f"{path.relative_to(ROOT)}:{node.name}"] = f"{lines} lines, {branches} branches"
    assert found.keys() == LONG_ON_PURPOSE, found


def test_nothing_is_unpickled_or_evaluated() -> None:
    for path in FILES:
        assert not packages_of(path) & {"pickle", "cloudpickle", "marshal", "shelve"}, path
        calls = [n.func.id for n in ast.walk(tree_of(path)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert not {"eval", "exec"} & set(calls), path
