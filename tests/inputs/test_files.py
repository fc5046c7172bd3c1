"""Files that aren't what a reader expects, a device, a pipe, something huge, are refused by every reader in a line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from agents.arrivals import ArrivalTraceError, read_arrival_trace
from cluster.experiments.problem_file import load_problem
from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import DocumentError
from configs.reading import FileRefused, read_lines, read_text
from models.datasets import DatasetError, load_examples
from models.profiles import ProfileError, load_profile
from netem.channels import AnyChannel, Channel
from reports import files
from reports.runs import ReportError, read_run
from reports.schema import DocumentUnreadable, RunFacts

CHANNEL: TypeAdapter[Channel] = TypeAdapter(AnyChannel)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _itself(path: Path) -> None:
    path.symlink_to(path.name)


def _circle(path: Path) -> None:
    path.with_name("other").symlink_to(path.name)
    path.symlink_to("other")


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**37)


def _linked(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


FILES: dict[str, Callable[[Path], Any]] = {
    "zeros": _linked("/dev/zero"),
    "random": _linked("/dev/urandom"),
    "full": _linked("/dev/full"),
    "pipe": _pipe,
    "linked pipe": lambda path: (_pipe(path.with_name("p")), path.symlink_to("p")),
    "folder": lambda path: path.mkdir(),
    "linked to itself": _itself,
    "linked in a circle": _circle,
    "linked to nothing": _linked("gone"),
    "huge": _huge,
    "process": _linked("/proc/self/pagemap"),
    "UTF-16": lambda path: path.write_bytes("t_s,mbps\n0,1".encode("utf-16")),
    "Latin-1": lambda path: path.write_bytes(b"\xe4\n"),
}


def _scenario(path: Path) -> None:
    Scenario.load(path)


def _report(path: Path) -> None:
    folder = path.parent / "run"
    folder.mkdir()
    path.rename(folder / files.LEDGER) if not path.is_symlink() else (folder / files.LEDGER).symlink_to(path)
    read_run(folder)


READERS: dict[str, tuple[str, Callable[[Path], Any], type[Exception]]] = {
    "scenario": ("s.yaml", _scenario, DocumentError),
    "profile": ("p.yaml", lambda path: load_profile("p.yaml/m", path.parent), ProfileError),
    "problem": ("p.json", load_problem, DocumentError),
    "CSV trace": ("t.csv", lambda p: CHANNEL.validate_python({"kind": "trace", "path": str(p)}), ValidationError),
    "Mahimahi": ("t.up", lambda p: CHANNEL.validate_python({"kind": "trace", "path": str(p)}), ValidationError),
    "arrivals": ("a.csv", read_arrival_trace, ArrivalTraceError),
    "JSON examples": ("e.json", lambda path: load_examples("e.json", base_dir=path.parent), DatasetError),
    "JSONL examples": ("e.jsonl", lambda path: load_examples("e.jsonl", base_dir=path.parent), DatasetError),
    "facts": ("run.json", RunFacts.read, (DocumentUnreadable, OSError)),  # type: ignore[dict-item]
    "ledger": ("ledger", _report, ReportError),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses(tmp_path: Path, reader: str, kind: str) -> None:
    name, read, error = READERS[reader]
    FILES[kind](tmp_path / name)
    with pytest.raises(error) as refused:
        read(tmp_path / name)
    message = str(refused.value)
    assert name in message or reader in ("facts", "ledger")
    assert len(message) < 1000


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000, "a/" * 3000 + "b"])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises((FileRefused, FileNotFoundError)):
        read_text(Path(name), 100)


def test_sizes_are_exact(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("12345")
    assert read_text(tmp_path / "a", 5) == "12345"
    with pytest.raises(FileRefused, match="larger than"):
        read_text(tmp_path / "a", 4)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb", ["a", "b"]),
        (b"\xef\xbb\xbfa\n\nb", ["a", "", "b"]),
        ("a\u2028b\x0cc\n".encode(), ["a\u2028b\x0cc"]),
    ],
)
def test_lines_are_an_editors(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    (tmp_path / "a").write_bytes(content)
    assert read_lines(tmp_path / "a", 100) == lines


def test_documents_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    agent = {"modes": {"int4": {"payload_bytes": 5, "quality": 1}}}
    (tmp_path / "p.json").write_bytes(
        mark + json.dumps({"uplink_mbps": 5, "deadline_ms": 50, "agents": [agent]}).encode()
    )
    assert load_problem(tmp_path / "p.json").names == [0]
    example = json.dumps({"context": "c", "question": "q", "answers": ["a"]}).encode()
    (tmp_path / "e.jsonl").write_bytes(mark + example + b"\r\n")
    assert load_examples("e.jsonl", base_dir=tmp_path)[0].context == "c"
    squad = {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [{"text": "a"}]}]}]}]}
    (tmp_path / "e.json").write_bytes(mark + json.dumps(squad).encode())
    assert load_examples("e.json", base_dir=tmp_path)[0].answers == ("a",)
    (tmp_path / "a.csv").write_bytes(mark + b"t_s,agent\r\n0.5,1\r\n")
    assert read_arrival_trace(tmp_path / "a.csv") == [(0.5, 1)]
    profile = {"kv_bytes": 1, "edge_prefill_ms": 1, "quality_basis": "x", "modes": {"local": {}}}
    profile["modes"] = {"local": {"payload_bytes": 0, "decode_ms": 1, "quality": 1}}
    (tmp_path / "p.yaml").write_bytes(mark + yaml.safe_dump({"m": profile}).encode())
    assert load_profile("p.yaml/m", tmp_path).kv_bytes == 1
