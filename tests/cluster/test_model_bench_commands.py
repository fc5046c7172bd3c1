"""`scout bench codec|scoring|decode` as their users call them."""

import json

import pytest
import torch

from tests.cluster.conftest import scout


def test_the_codec_as_json() -> None:
    done = scout("bench", "codec", "--quick", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {"bf16", "int8", "int4"} <= {row["quantizer"] for row in rows}
    assert all(row["pack_gb_per_s"] > 0 and row["copy_gb_per_s"] > 0 for row in rows)


@pytest.mark.parametrize("command", ["scoring", "decode"])
def test_models_on_a_cpu_are_toys_and_say_so(command: str) -> None:
    done = scout("bench", command, "--quick", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "toy" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    done = scout("bench", "decode", "--device", "cuda")
    assert done.returncode == 2 and "no GPU here" in done.stderr and "Traceback" not in done.stderr


def test_unknown_shapes_are_named() -> None:
    done = scout("bench", "scoring", "--shapes", "qwen9")
    assert done.returncode == 2 and "qwen9" in done.stderr and "qwen2.5-3b" in done.stderr
