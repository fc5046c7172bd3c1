"""Every reader of a user's file either returns or raises its documented error, whatever the file holds."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from agents.arrivals import ArrivalTraceError, read_arrival_trace
from cluster.experiments.problem_file import load_problem
from cluster.run_folder import controls
from cluster.run_folder.folder import RunFolderError
from cluster.run_folder.folder import read as read_folder
from cluster.scenario.events import EventRefused
from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import DocumentError
from models.datasets import DatasetError, load_examples
from models.profiles import ProfileError, load_file
from netem.channels import AnyChannel, Channel
from reports import files
from reports.runs import ReportError, read_run
from tests.support.commands import CONFIGS

CHANNEL: TypeAdapter[Channel] = TypeAdapter(AnyChannel)
PIECES = [
    *("", " ", "\n", "\r\n", "\t", "\0", "\x1b", "\ufeff", "\u2028", "é", "\U0001f600", "'", '"', "\\", "\\ud800", "%"),
    *("#", "{", "}", "[", "]", ":", ": ", ",", "- ", "? ", "| ", "> ", "&a ", "*a", "<<: *a", "!!int ", "!!binary "),
    *("---\n", "...", "null", "~", "true", "yes", "no", "nan", "NaN", ".nan", "inf", ".inf", "-Infinity", "1e999"),
    *("-1", "0", "1", "010", "0x1f", "1:30", "2024-13-45", "1_000", "999999999999", "9" * 50, "1" * 5000, "1e-320"),
    *("[]", "{}", '""', "x" * 300, "full", "int4", "local", "kind", "steps", "trace", "modes", "name", "q2c@0.5"),
    *("../../x", "/dev/zero", "t_s,mbps", "1e300", "1e-300", "0.1", "'1'", "[[0, 1], [1, 2]]", "{kind: trace}"),
]
TOKEN = re.compile(rb"[^\s:,{}\[\]\"']+")


@st.composite
def mutations(draw: st.DrawFn, good: bytes) -> bytes:
    """A good file with some of it replaced, doubled, cut out or cut off; or anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = good
    for _ in range(draw(st.integers(1, 4))):
        tokens = [match.span() for match in TOKEN.finditer(content)]
        if tokens and draw(st.booleans()):
            begin, end = draw(st.sampled_from(tokens))
        else:
            begin = draw(st.integers(0, len(content)))
            end = min(len(content), begin + draw(st.integers(0, 12)))
        piece = draw(st.sampled_from(PIECES).map(str.encode) | st.binary(max_size=4) | st.just(content[begin:end] * 2))
        content = content[:begin] + piece + content[end:]
    return content


def example(name: str) -> bytes:
    return (CONFIGS / name).read_bytes()


QA = {"context": "Anna has a ball.", "question": "What?", "answers": ["a ball"]}
SQUAD = {"data": [{"paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [{"text": "a"}]}]}]}]}
HOTPOT = [{"question": "q", "answer": "a", "context": [["title", ["One.", "Two."]]]}]


def channel(path: Path) -> None:
    found = CHANNEL.validate_python({"kind": "trace", "path": str(path)})
    found.until(1, 60 if found.changes_within(60) < 1e5 else 0)


def scenario(path: Path) -> None:
    Scenario.load(path).resolved()


READERS: list[tuple[str, bytes, Callable[[Path], Any], type[Exception]]] = [
    ("s.yaml", example("congestion.yaml"), scenario, DocumentError),
    ("faults.yaml", example("faults.yaml"), scenario, DocumentError),
    (
        "p.yaml",
        example("profiles/paper_b.yaml"),
        load_file.__wrapped__,
        ProfileError,
    ),
    ("t.csv", b"t_s,mbps\n0,10\n1.5,20\n2,0\n", channel, ValidationError),
    ("t.up", b"1\n2\n2\n5\n120\n", channel, ValidationError),
    ("a.csv", b"t_s,agent\n0,0\n0.5,1\n", read_arrival_trace, ArrivalTraceError),
    ("p.json", example("problems/eight-agents.json"), load_problem, DocumentError),
    ("e.json", json.dumps(SQUAD).encode(), lambda path: load_examples(str(path)), DatasetError),
    ("h.json", json.dumps(HOTPOT).encode(), lambda path: load_examples(str(path)), DatasetError),
    ("e.jsonl", (json.dumps(QA) + "\n").encode() * 2, lambda path: load_examples(str(path)), DatasetError),
]


@pytest.mark.parametrize(("name", "good", "read", "error"), READERS, ids=[reader[0] for reader in READERS])
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_file(
    tmp_path: Path,
    data: st.DataObject,
    name: str,
    good: bytes,
    read: Callable[[Path], Any],
    error: type[Exception],
) -> None:
    path = tmp_path / name
    path.write_bytes(data.draw(mutations(good)))
    try:
        read(path)
    except error as refused:
        assert str(refused)


@pytest.mark.parametrize(("name", "good", "read", "error"), READERS, ids=[reader[0] for reader in READERS])
def test_the_good_ones_are_good(
    tmp_path: Path, name: str, good: bytes, read: Callable[[Path], Any], error: type[Exception]
) -> None:
    (tmp_path / name).write_bytes(good)
    read(tmp_path / name)


CONTROL = b'{"kind": "uplink", "steps": [{"mbps": 5, "for_s": 2}]}'


@settings(max_examples=150, deadline=None)
@given(mutations(CONTROL) | mutations(b'{"kind": "freeze", "part": "worker", "number": 0, "for_s": 1}'))
def test_any_control(text: bytes) -> None:
    try:
        assert str(controls.parse(text))
    except EventRefused as refused:
        assert str(refused)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cluster.run_folder import folder as run_folder
    from cluster.simulated.engine import run_simulated

    out = tmp_path_factory.mktemp("fuzz") / "run"
    loaded = Scenario.load(CONFIGS / "congestion.yaml", ["equal"])
    run_simulated(loaded, run_folder.create(out, loaded))
    return out


@pytest.mark.parametrize("name", [files.RUN, files.SCENARIO, files.SUMMARY, files.LEDGER, files.TIMELINE])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_run_folder(tmp_path: Path, run_dir: Path, name: str, data: st.DataObject) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(data.draw(mutations((run_dir / name).read_bytes())))
    try:
        read_run(folder)
    except ReportError as refused:
        assert str(refused)
    try:
        read_folder(folder)
    except RunFolderError as refused:
        assert str(refused)
