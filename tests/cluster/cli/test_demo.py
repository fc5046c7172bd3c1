"""`scout demo` shows what it can, says what it can't, and ends well."""

from pathlib import Path

import pytest

from tests.support.commands import ENVIRONMENT, scout, started

NOBODY_THERE = "127.0.0.1:1"


def test_a_part_that_cannot_start_is_named_and_the_demo_ends_well(tmp_path: Path) -> None:
    done = scout("demo", "--no-models", "--address", NOBODY_THERE, "--out", tmp_path / "demo", environment=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "75.0%" in done.stdout and "100.0%" in done.stdout, "the papers' headline, simulated"
    first, refused, last = (line for line in done.stderr.splitlines() if line)
    picture, report = Path(first.removeprefix("first picture: ")), Path(last.removeprefix("report: "))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert refused.startswith("Not shown: ") and NOBODY_THERE in refused
    assert report.is_relative_to(tmp_path) and "model_aware" in report.read_text()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    done = scout("demo", "--out", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tmp_path} is not empty" in done.stderr


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_what_real_models_need(missing: str, tmp_path: Path) -> None:
    """A module that can't be imported stands in for one that isn't installed."""
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('no {missing}', name='{missing}')")
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    process = started("demo", "--models", "--out", str(tmp_path / "demo"), environment=environment)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert f"Not shown: {missing} isn't installed: pip install 'scout-emulator[models]'" in stderr
