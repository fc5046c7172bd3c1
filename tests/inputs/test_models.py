"""A model is what its files say, or is refused in a line: nothing is filled up, cut or left to a traceback."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.hf.loading import ModelError, ModelSpec, check_pair, load_model
from tests.models.test_hf_loading import saved

Weights = dict[str, torch.Tensor]
HEAD = "lm_head.weight"
KEY = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(saved(tmp_path_factory.mktemp("models") / "good"))


def changed(good: Path, folder: Path, config: dict[str, Any], change: Callable[[Weights], Weights] | None) -> ModelSpec:
    folder.mkdir()
    for path in good.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    written = json.loads((good / "config.json").read_text())
    if "num_hidden_layers" in config:  # a config without this list, as most published ones are
        del written["layer_types"]
    (folder / "config.json").write_text(json.dumps(written | config))
    if change is not None:
        save_file(change(load_file(good / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    return ModelSpec(str(folder), dtype="float32")


def without(*keys: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if key not in keys}


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + key: value for key, value in weights.items()}


def with_value(key: str, value: float) -> Callable[[Weights], Weights]:
    def change(weights: Weights) -> Weights:
        weights[key].view(-1)[-1] = value
        return weights

    return change


def cut(key: str) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {key: weights[key][:-1].contiguous()}


def renamed(key: str, other: str) -> Callable[[Weights], Weights]:
    return lambda weights: {other if name == key else name: value for name, value in weights.items()}


WEIGHTS: list[tuple[dict[str, Any], Callable[[Weights], Weights] | None, str]] = [
    ({}, prefixed("_orig_mod."), "missing, such as lm_head.weight .there are others, such as _orig_mod"),
    ({}, prefixed("module."), "27 missing"),
    ({}, prefixed("model.model."), "missing"),
    ({}, without(HEAD), "1 missing, such as lm_head.weight"),
    ({}, without(KEY), f"1 missing, such as {KEY}"),
    ({}, without("model.norm.weight", HEAD), "2 missing"),
    ({}, renamed(KEY, KEY + "_"), f"1 missing, such as {KEY}"),
    ({}, cut(KEY), f"1 of another size, such as {KEY}"),
    ({}, cut("model.embed_tokens.weight"), "1 of another size"),
    ({}, lambda weights: {"x": torch.zeros(1)}, "27 missing"),
    ({"num_hidden_layers": 1}, None, "of more than its 1 layers, such as model.layers.1."),
    ({"num_hidden_layers": 3}, None, "missing, such as model.layers.2."),
    ({"vocab_size": 65}, None, "of another size, such as lm_head.weight"),
    ({"intermediate_size": 40}, None, "of another size"),
    ({"num_attention_heads": 4}, None, "of another size"),
    ({}, with_value(KEY, float("nan")), f"weight {KEY} has values that aren't finite"),
    ({}, with_value(HEAD, float("inf")), f"weight {HEAD} has values that aren't finite"),
    ({}, with_value("model.norm.weight", float("-inf")), "weight model.norm.weight has values"),
]


@pytest.mark.parametrize(("config", "change", "message"), WEIGHTS)
def test_weights_that_are_not_the_models(
    good: Path, tmp_path: Path, config: dict[str, Any], change: Callable[[Weights], Weights] | None, message: str
) -> None:
    spec = changed(good, tmp_path / "m", config, change)
    with pytest.raises(ModelError, match=message) as refused:
        load_model(spec)
    assert spec.name in str(refused.value) and "\n" not in str(refused.value)


def test_what_does_not_matter_is_let_be(good: Path, tmp_path: Path) -> None:
    """Weights of another head; half precision that has all values."""
    spec = changed(good, tmp_path / "m", {}, lambda weights: weights | {"score.weight": torch.zeros(2, 32)})
    assert load_model(spec).fingerprint == load_model(ModelSpec(str(good), dtype="float32")).fingerprint


KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
VALUES = (0, -1, 128.0, "128", True, [2], float("nan"), {}, "")


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("key", [*KEYS, "max_position_embeddings", "intermediate_size", "head_dim"])
def test_sizes_that_are_none_are_found_before_loading(good: Path, tmp_path: Path, key: str, value: Any) -> None:
    spec = changed(good, tmp_path / "m", {key: value}, None)
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(ModelError) as refused:
        check_pair(spec, spec, scout=False)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 500
    assert key in message or value in ("", "128", [2], {}), message


@pytest.mark.parametrize("key", [*KEYS[:3], "vocab_size", "max_position_embeddings"])
def test_null_is_no_size(good: Path, tmp_path: Path, key: str) -> None:
    spec = changed(good, tmp_path / "m", {key: None}, None)
    with pytest.raises(ModelError, match=key):
        check_pair(spec, spec, scout=False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 33}, "hidden_size 33 isn't a multiple of 2 heads"),
        ({"num_attention_heads": 3}, "hidden_size 32 isn't a multiple of 3 heads"),
        ({"num_key_value_heads": 3}, "2 heads can't share 3"),
        ({"hidden_size": 2, "num_attention_heads": 2}, "leaves nothing"),
    ],
)
def test_sizes_fit_together(good: Path, tmp_path: Path, config: dict[str, int], message: str) -> None:
    spec = changed(good, tmp_path / "m", config, None)
    with pytest.raises(ModelError, match=message):
        load_model(spec)


def test_a_tokenizer_with_more_tokens_than_the_model(good: Path, tmp_path: Path) -> None:
    from models.hf.prompts import prompt_of
    from tests.models.test_hf_loading import tokenizer

    spec = changed(good, tmp_path / "m", {}, None)
    tokenizer(" ".join(f"w{n}" for n in range(99))).save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match=r"tokens outside 0\.\.63"):
        prompt_of(load_model(spec), "w1 w98", "w1")
