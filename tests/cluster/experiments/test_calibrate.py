"""Profiles of real models are usable and keep what else is in a file; studies of quality agree with themselves."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic_core import to_jsonable_python
from typer.testing import CliRunner

from cluster.cli.app import app
from cluster.cli.console import console
from cluster.experiments.calibrate import examples_and_others, write_profile
from cluster.experiments.quality import RETENTIONS, Comparison, percent, show
from kvcache.modes import parse_mode
from models.datasets import family_examples
from models.hf.loading import LoadedModel, ModelSpec, load_model
from models.profiles import ProfileError, load_file, load_profile
from tests.support.commands import scout

torch.set_num_threads(1)
EXAMPLES = family_examples("eval", 6, max_tokens=150)
MODE = {"payload_bytes": 9, "decode_ms": 2.0, "quality": 50.0, "quality_interval": [40.0, 60.0]}
PROFILE = {"kv_bytes": 9, "edge_prefill_ms": 1.0, "quality_basis": "100: all", "modes": {"full": MODE}}


@cache
def model(size: str) -> LoadedModel:
    return load_model(ModelSpec(f"family/{size}", dtype="float32"))


def calibrate(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["calibrate", *arguments])


def lines(path: Path, *words: str) -> None:
    path.write_text("".join(f'{{"context": "{word}", "question": "?", "answers": ["x"]}}\n' for word in words))


def test_a_calibrated_model_is_a_profile(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    pair = ("family/tiny", "--cloud", "family/small", "--count", "3", "--out", str(out))
    done = calibrate(*pair, "--modes", "full,mixed_int4,q2c@0.5+int8,scout@0.75,prompt,local")
    assert done.exit_code == 0, done.output
    profile = load_profile(f"{out}/tiny")
    assert list(map(str, profile.modes)) == ["full", "mixed_int4", "q2c@0.5+int8", "scout", "prompt", "local"]
    sizes = {str(mode): entry.payload_bytes for mode, entry in profile.modes.items()}
    assert sizes["full"] == profile.kv_bytes > sizes["q2c@0.5+int8"]
    assert profile.mixed_int4_plan is not None and len(profile.mixed_int4_plan) == 3
    for mode in profile.modes.values():
        low, high = mode.quality_interval or (1, 0)
        assert 0 <= low <= mode.quality <= high <= 100 and mode.decode_ms > 0
    assert "3 examples of family" in profile.quality_basis

    done = scout("calibrate", *pair, "--modes", "local", "--name", "other", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["other"]["modes"]["local"]["payload_bytes"] == 0
    now = load_file.__wrapped__(out)
    assert list(now) == ["tiny", "other"] and now["tiny"].modes == profile.modes, "the other model stays"
    assert "Linux" in out.read_text() and out.read_text().startswith("# Measured")


def test_random_weights_have_no_quality(tmp_path: Path) -> None:
    out = tmp_path / "toy.yaml"
    done = calibrate(
        *("toy", "--cloud", "toy", "--weights", "random", "--context-tokens", "30", "--count", "2"),
        *("--modes", "int4,scout", "--max-new-tokens", "2", "--out", str(out)),
    )
    assert done.exit_code == 0, done.output
    profile = load_profile(f"{out}/toy")
    assert profile.tokens == 30 and "mean nothing" in profile.quality_basis
    assert [(mode.quality, mode.quality_interval) for mode in profile.modes.values()] == [(0, None)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("family/huge", "--cloud", "family/tiny"), "no size 'huge'"),
        (("toy", "--cloud", "family/tiny"), "random"),
        (("family/tiny", "--cloud", "family/tiny", "--modes", "full,half"), "no model knows mode 'half'"),
        (("family/tiny", "--cloud", "family/tiny", "--examples", "gone.json"), "gone.json can't be read"),
        (("family/tiny", "--cloud", "family/tiny", "--out", "profile.json"), "profile.json"),
    ],
)
def test_mistakes_are_said_in_a_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    out = () if "--out" in arguments else ("--out", str(tmp_path / "p.yaml"))
    done = calibrate(*arguments, *out, "--count", "2")
    assert done.exit_code == 2
    assert message in done.output and len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "p.yaml").exists()


def test_different_tokenizers_refuse_scout_only(tmp_path: Path) -> None:
    tiny = Path(load_model(ModelSpec("family/tiny")).spec.source)
    folder = tmp_path / "foreign"
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = folder / "tokenizer.json"
    data = json.loads(tokenizer.read_text())
    data["normalizer"] = None
    tokenizer.write_text(json.dumps(data))
    pair = ("family/tiny", "--cloud", str(folder), "--count", "2", "--out", str(tmp_path / "p.yaml"))
    done = calibrate(*pair, "--modes", "prompt,scout")
    assert done.exit_code == 2 and "differ, and so do their positions" in done.output
    assert calibrate(*pair, "--modes", "prompt,local").exit_code == 0
    done = CliRunner().invoke(app, ["quality", "--cloud", str(folder), "--count", "2"])
    assert done.exit_code == 2 and "differ, and so do their positions" in done.output


def test_a_file_keeps_its_other_models_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "# about this file\n\n# about a\na:\n" + "  kv_bytes: 5\n  edge_prefill_ms: 1\n  quality_basis: x\n"
    )
    with path.open("a") as file:
        file.write("  modes:\n    full: {payload_bytes: 5, decode_ms: 1, quality: 2}\n")
    write_profile(path, "b", PROFILE, "first")
    write_profile(path, "b", PROFILE | {"kv_bytes": 11}, "second")
    text = path.read_text()
    assert text.startswith("# about this file\n\n# about a\na:\n") and "# second\nb:" in text and "first" not in text
    assert load_profile(f"{path}/a").kv_bytes == 5 and load_profile(f"{path}/b").kv_bytes == 11
    assert [p.name for p in tmp_path.iterdir()] == ["p.yaml"]


def test_files_that_cannot_be_edited_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    modes = "{full: {payload_bytes: 5, decode_ms: 1, quality: 2}}"
    one = f"{{kv_bytes: 5, edge_prefill_ms: 1, quality_basis: x, modes: {modes}}}"
    path.write_text(f"a: {one}\nb: {one}\n")
    with pytest.raises(ProfileError, match="blank lines"):
        write_profile(path, "b", PROFILE, "new")
    assert path.read_text() == f"a: {one}\nb: {one}\n" and [p.name for p in tmp_path.iterdir()] == ["p.yaml"]
    path.write_text("- no\n- profile\n")
    with pytest.raises(ProfileError, match="must map model names"):
        write_profile(path, "b", PROFILE, "new")


def test_plans_are_found_on_other_examples(tmp_path: Path) -> None:
    measured, others = examples_and_others("family", 3)
    assert len(measured) == 3 and len(others) == 16
    path = tmp_path / "some.jsonl"
    lines(path, *"abcdefg")
    measured, others = examples_and_others(str(path), 4)
    assert len(measured) == 4 and not set(measured) & set(others[:3])
    assert len(set(others)) == 7, "and of the measured, where others don't suffice"
    lines(path, "a")
    measured, others = examples_and_others(str(path), 5)
    assert measured == others and len(measured) == 1


def test_a_comparison_agrees_with_itself() -> None:
    modes = [parse_mode(mode) for mode in ("full", "q2c@0.5", "prompt", "scout", "scout@0.25", "local")]
    found = Comparison(model("tiny"), model("small"), modes, max_new_tokens=6).run(EXAMPLES)
    mean = {row["mode"]: row["mean"] for row in found["modes"]}
    selected = {(row["cache"], row["selection"], row["retention"]): row["mean"] for row in found["selections"]}
    scouting = {(row["selection"], row["retention"]): row for row in found["scouting"]}
    assert mean["edge alone"] == mean["full"] == mean["local"] and mean["cloud alone"] == mean["prompt"]
    assert mean["q2c@0.5"] == selected["edge", "q2c", 0.5]
    assert mean["scout"] == scouting["q2c_pooled", 0.75]["scout"]["mean"]
    assert mean["scout@0.25"] == scouting["q2c_pooled", 0.25]["scout"]["mean"]
    assert scouting["q2c", 0.25]["own"]["mean"] == selected["cloud", "q2c", 0.25]
    for row in scouting.values():
        difference = row["scout"]["mean"] - row["own"]["mean"]
        assert row["difference"]["mean"] == pytest.approx(difference)
        assert row["overlap_beyond_chance"]["mean"] < row["overlap"]["mean"] < 100
    for row in found["kept_of_answers"]:
        assert row["all_tokens"]["mean"] <= row["first_token"]["mean"]
    json.dumps(to_jsonable_python(found), allow_nan=False)
    with console.capture() as shown:
        show(console, found)
    assert "scout@0.25" in shown.get() and "q2c_pooled" in shown.get()


def test_a_model_agrees_with_itself() -> None:
    found = Comparison(model("tiny"), model("tiny"), [], max_new_tokens=6).run(EXAMPLES[:3])
    assert len(found["scouting"]) == 2 * len(RETENTIONS)
    for row in found["scouting"]:
        assert row["overlap"]["mean"] == pytest.approx(100) == row["overlap_beyond_chance"]["mean"]
        assert row["difference"]["mean"] == 0


def test_a_comparison_needs_a_plan_for_mixed_int4() -> None:
    with pytest.raises(ValueError, match="mixed_int4 needs a plan"):
        Comparison(model("tiny"), model("small"), [parse_mode("mixed_int4")])


def test_percent() -> None:
    assert percent([]) == {"mean": None, "interval": None, "of": 0}
    assert percent([0.5, 0.5]) == {"mean": 50.0, "interval": [50.0, 50.0], "of": 2}
