"""As many examples as asked for are measured; one that can't be is found before any work; work that is done is kept."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.experiments.calibrate import PROBED, examples_and_others
from models.datasets import DatasetError, Example, load_examples
from models.hf import measure as measuring
from models.hf.loading import ModelSpec, load_model
from models.hf.measure import fitting
from models.profiles import load_file
from models.tasks import QA

torch.set_num_threads(1)


def write(path: Path, contexts: list[str]) -> Path:
    lines = [json.dumps({"context": context, "question": "who?", "answers": ["x"]}) for context in contexts]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("there", "count", "measured", "other"),
    [
        (40, 2, 2, 16),
        (40, None, 40, 0),
        (1190, None, 1190, 0),
        (40, 24, 24, 16),
        (40, 30, 30, 10),
        (40, 40, 40, 0),
        (40, 99, 40, 0),
        (18, 2, 2, 16),
        (3, 2, 2, 1),
        (2, 1, 1, 1),
        (1, 1, 1, 0),
        (1, None, 1, 0),
        (16, 1, 1, 15),
    ],
)
def test_what_is_asked_for_is_measured(
    tmp_path: Path, there: int, count: int | None, measured: int, other: int
) -> None:
    path = write(tmp_path / "e.jsonl", [f"context {n}" for n in range(there)])
    found, probed = examples_and_others(str(path), count)
    assert len(found) == len(set(found)) == measured
    assert len(set(probed) - set(found)) == other, "a plan is found on others, as far as there are any"
    assert len(probed) == min(PROBED, there)


GOOD = "Anna has a red ball."
EMPTY: list[str] = ["", " ", "\n", "\t \r\n", "\u3000", "\u00a0"]


@pytest.mark.parametrize("context", EMPTY)
@pytest.mark.parametrize("at", [1, 2, 5])
def test_empty_contexts_are_named(tmp_path: Path, context: str, at: int) -> None:
    contexts = [GOOD + str(n) for n in range(5)]
    contexts[at - 1] = context
    with pytest.raises(DatasetError, match=rf"e\.jsonl:{at}: context: is empty"):
        load_examples(str(write(tmp_path / "e.jsonl", contexts)))
    qas = [{"question": "q", "answers": [{"text": "a"}]}]
    squad = {"data": [{"paragraphs": [{"context": each, "qas": qas} for each in contexts]}]}
    (tmp_path / "e.json").write_text(json.dumps(squad))
    with pytest.raises(DatasetError, match=f"the context of example {at} is empty"):
        load_examples(str(tmp_path / "e.json"))


def test_prompts_that_a_model_does_not_take_are_named() -> None:
    tiny = load_model(ModelSpec("family/tiny", dtype="float32"))
    fine = Example(GOOD, "who?", ("x",))
    left_out: list[str] = []
    examples = [fine, fine, Example(GOOD * 1000, "who?", ("x",)), Example("", "who?", ("x",))]
    assert fitting(examples, QA, 8, tiny, progress=left_out.append) == [fine] * 2
    assert re.fullmatch(r"left out: example 3: [\d,]+ tokens with its answer; family/tiny takes .*", left_out[0])
    assert left_out[1:] == ["left out: example 4: family/tiny makes no token of its context"]
    with pytest.raises(ValueError, match="example 1: family/tiny makes no token"):
        fitting(examples[3:], QA, 8, tiny)


def calibrate(path: Path, out: Path) -> Any:
    modes = ("--modes", "full,local", "--max-new-tokens", "2")
    pair = ("family/tiny", "--cloud", "family/tiny")
    return CliRunner().invoke(app, ["calibrate", *pair, "--examples", str(path), "--out", str(out), *modes])


@pytest.mark.parametrize("why", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_what_was_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: type[BaseException]) -> None:
    path = write(tmp_path / "e.jsonl", [f"{GOOD} {n}" for n in range(5)])
    request = measuring._Bench.request

    def third_fails(self: Any, example: Example) -> Any:
        if example.context.endswith(" 3"):
            raise why
        return request(self, example)

    monkeypatch.setattr(measuring._Bench, "request", third_fails)
    done = calibrate(path, tmp_path / "p.yaml")
    assert done.exit_code == (130 if why is KeyboardInterrupt else 1)
    assert "cut short" in done.stderr and "3 examples" in done.stderr
    profile = load_file.__wrapped__(tmp_path / "p.yaml")["tiny"]
    assert "on 3 examples" in profile.quality_basis


def test_an_example_that_can_not_be_is_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = calibrate(write(tmp_path / "e.jsonl", [GOOD, GOOD * 1000]), tmp_path / "p.yaml")
    assert done.exit_code == 0 and "left out: example 2: " in " ".join(done.stderr.split())
    assert "on 1 examples" in (tmp_path / "p.yaml").read_text()
    monkeypatch.setattr(measuring._Bench, "request", lambda *_: pytest.fail("measured"))
    done = calibrate(write(tmp_path / "e.jsonl", [GOOD * 1000]), tmp_path / "q.yaml")
    assert done.exit_code == 2 and "example 1: " in done.stderr
    assert not (tmp_path / "q.yaml").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- no profile", "must map model names"),
        ("a: [", "not YAML"),
        ("tiny: {modes: 5}", "tiny"),
        (b"\xff\xfe", "UTF-8"),
        (None, "is a folder"),
    ],
)
def test_a_file_that_can_not_take_the_profile_is_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes | None, message: str
) -> None:
    out = tmp_path / "p.yaml"
    if content is None:
        out.mkdir()
    else:
        out.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(measuring._Bench, "request", lambda *_: pytest.fail("measured"))
    done = calibrate(write(tmp_path / "e.jsonl", [GOOD]), out)
    assert done.exit_code == 2 and message in done.stderr
