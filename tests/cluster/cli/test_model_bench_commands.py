"""`scout bench codec|scoring|decode` as their users call them."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from cluster.cli.app import app
from tests.support.commands import REPOSITORY, scout


def test_the_codec_as_json() -> None:
    done = scout("bench", "codec", "--quick", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {"bf16", "int8", "int4"} <= {row["quantizer"] for row in rows}
    assert all(row["pack_gb_per_s"] > 0 and row["copy_gb_per_s"] > 0 for row in rows)


@pytest.mark.parametrize("command", ["scoring", "decode"])
def test_models_on_a_cpu_are_toys_and_say_so(command: str) -> None:
    done = scout("bench", command, "--quick", "--device", "cpu", "--tokens", "64,200", "--json")
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert {run["model"] for run in runs} == {"toy"} and {run["tokens"] for run in runs} == {64, 200}
    assert "toy" in done.stderr and "nothing about Qwen2.5" in done.stderr


@pytest.mark.parametrize("command", ["codec", "scoring", "decode"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(command: str) -> None:
    done = CliRunner().invoke(app, ["bench", command, "--device", "cuda"])
    assert done.exit_code == 2 and not done.stdout
    assert done.stderr.startswith("scout: no GPU: ") and done.stderr.count("\n") == 1 and "--device cpu" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--models", "qwen9"), "no 'qwen9'; there are qwen2.5-3b, qwen2.5-7b, qwen2.5-14b, toy"),
        (("--models", "toy,qwen2.5-7b"), "qwen2.5-7b without a GPU is too large and slow"),
        (("--tokens", "170,many"), "numbers by comma"),
        (("--tokens", "31"), "at least 32"),
        (("--tokens", "99999"), "toy takes 1 to 32768"),
    ],
)
def test_wrong_options_end_in_one_line(arguments: tuple[str, str], message: str) -> None:
    done = CliRunner().invoke(app, ["bench", "scoring", "--device", "cpu", *arguments])
    assert done.exit_code == 2 and not done.stdout
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_listing_the_benches_loads_no_torch() -> None:
    code = "import sys, cluster.cli.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
