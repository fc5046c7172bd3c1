"""Which models are taken, which are refused and how, and which fit together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast, Qwen2Config

from models.hf.architecture import SHAPES, ModelError, check_supported, shape_config
from models.hf.loading import LoadedModel, ModelSpec, build_random, load_model, same_tokenizer

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
}


def tokenizer(words: str = "the gawo corin", lower: bool = False, eos: str | None = None) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(["[UNK]", *words.split()])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        made.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token=eos)


def saved(folder: Path, seed: int = 0, **settings: Any) -> str:
    """A tiny model as `save_pretrained` leaves it."""
    config = Qwen2Config(**{**TINY, **settings})
    build_random(ModelSpec("x", "random", "float32", seed=seed), config).model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("mistral", {"sliding_window": 16}, "sliding_attention over 16 tokens"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, "sliding_attention"),
        ("gemma3_text", {}, "sliding_attention"),
        ("deepseek_v3", {}, "MLA"),
        ("mamba", {}, "not supported"),
        ("qwen3_next", {}, "linear attention"),
        ("gpt2", {}, "supported are llama, mistral"),
        ("falcon_h1", {}, "not supported"),
    ],
)
def test_refused_by_name(model_type: str, settings: dict[str, Any], message: str) -> None:
    config = AutoConfig.for_model(model_type, **settings)
    with pytest.raises(ModelError, match=message) as refused:
        check_supported("some/model", config)
    assert "some/model" in str(refused.value) and model_type in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_window_longer_than_any_sequence_is_none() -> None:
    config = AutoConfig.for_model("mistral", **TINY, sliding_window=128)
    check_supported("m", config)
    assert config.sliding_window is None


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_as_published(name: str) -> None:
    config = shape_config(name)
    check_supported(name, config)
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(config)
    published = {"qwen2.5-3b": 3.09e9, "qwen2.5-7b": 7.62e9, "qwen2.5-14b": 14.77e9, "toy": 0.85e6}
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == pytest.approx(published[name], rel=0.01)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("/no/such/folder"), "no configuration"),
        (ModelSpec("qwen2.5-7b"), "weights: random"),
        (ModelSpec("toy", "random", device="cuda:99"), "cuda:99"),
        (ModelSpec("toy", "random", device="nonsense"), "nonsense"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_line(spec: ModelSpec, message: str) -> None:
    with pytest.raises(ModelError, match=message) as refused:
        load_model(spec)
    assert "\n" not in str(refused.value)


def test_only_safetensors_and_whole_folders_load(tmp_path: Path) -> None:
    folder = Path(saved(tmp_path))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no weights"):
        load_model(ModelSpec(str(folder)))
    (folder / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(ModelError, match="no weights"):
        load_model(ModelSpec(str(folder)))
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_model(ModelSpec(str(folder)))
    assert load_model(ModelSpec(str(folder), "random")).tokenizer is None


def test_fingerprints_tell_models_apart(tmp_path: Path) -> None:
    def load(name: str, seed: int = 0, dtype: Any = "bfloat16", **settings: Any) -> LoadedModel:
        return load_model(ModelSpec(saved(tmp_path / name, seed, **settings), dtype=dtype))

    a = load("a")
    assert a.stop_tokens == {2} and a.max_positions == 128 and a.geometry.kv_heads == 1
    assert load("copy").fingerprint == a.fingerprint == load("wide", dtype="float32").fingerprint
    others = [load("other", 1), load("deeper", num_hidden_layers=3), load("theta", rope_theta=5e5)]
    others.append(load_model(ModelSpec(a.spec.name, "random")))
    assert len({a.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert all(len(model.fingerprint) == 16 for model in others)


def test_random_weights_come_from_their_seed_alone() -> None:
    spec = ModelSpec("toy", "random", "float32")
    torch.manual_seed(1)
    a, before = load_model(spec), torch.rand(1)
    torch.manual_seed(1)
    b, alone = load_model(spec), torch.rand(1)
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))
    torch.manual_seed(1)
    assert before == alone == torch.rand(1), "nobody else's random numbers are touched"
    other = load_model(ModelSpec("toy", "random", "float32", seed=1))
    assert not torch.equal(next(a.model.parameters()), next(other.model.parameters()))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (tokenizer(), True),
        (tokenizer("the corin gawo"), False),
        (tokenizer("the gawo corin x"), False),
        (tokenizer(lower=True), False),
        (tokenizer(eos="<end>"), False),
        (None, False),
    ],
)
def test_same_tokenizer(other: PreTrainedTokenizerFast | None, same: bool) -> None:
    def with_tokenizer(tokens: PreTrainedTokenizerFast | None) -> LoadedModel:
        return build_random(ModelSpec("x", "random", "float32"), Qwen2Config(**TINY), tokens)

    a, b = with_tokenizer(tokenizer()), with_tokenizer(other)
    assert same_tokenizer(a, b) is same and same_tokenizer(b, a) is same
    assert same_tokenizer(with_tokenizer(None), with_tokenizer(None))
    used = tokenizer()
    used("the gawo", truncation=True, max_length=1, padding="max_length") if used.pad_token else used("the gawo")
    assert same_tokenizer(a, with_tokenizer(used)), "settings of a call are no difference"
