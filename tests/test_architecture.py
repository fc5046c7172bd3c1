"""The house keeps its order: arrows go downward, and Ray stays in `cluster` and the actor files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each package may import itself and those after it; the last four import none of the others but what is here.
ORDER = ["cluster", "reports", "agents", "cloud", "models", "allocator", "kvcache", "netem", "configs"]
ALONE: dict[str, set[str]] = {"allocator": {"kvcache.modes"}, "kvcache": set(), "netem": set()}
# The rooms of netem, upwards; modules at the root and the channels come before all of them.
NETEM_ROOMS = ["kernel", "helper", "checks", "bench"]
FILES = [path for package in ORDER for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def tops(modules: set[str]) -> set[str]:
    """Top-level names of modules."""
    return {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downward(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = {package} if package in ALONE else set(ORDER[ORDER.index(package) :])
    assert tops(imported(path) - ALONE.get(package, set())) & set(ORDER) <= allowed
    if package != "cluster" and path.name != "actor.py":
        assert "ray" not in tops(imported(path))


def test_nothing_is_unpickled_or_evaluated() -> None:
    for path in FILES:
        assert not tops(imported(path)) & {"pickle", "cloudpickle", "marshal", "shelve"}, path
        calls = [
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert not {"eval", "exec"} & set(calls), path


def test_rooms_of_netem_import_only_lower_ones() -> None:
    def floor(parts: tuple[str, ...]) -> int:
        return NETEM_ROOMS.index(parts[1]) + 1 if len(parts) > 1 and parts[1] in NETEM_ROOMS else 0

    for path in sorted((ROOT / "netem").rglob("*.py")):
        own_floor = floor(path.relative_to(ROOT).parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("netem"):
                names = [alias.name for alias in node.names] if node.module == "netem" else [""]
                for name in names:
                    imported_parts = (*node.module.split("."), name)
                    assert floor(imported_parts) <= own_floor, f"{path.relative_to(ROOT)} imports {node.module}"
