"""Supported model architectures, and built-in shapes that need no download."""

from typing import Any

from transformers import PreTrainedConfig, Qwen2Config

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt_neox")
"""Model types whose every layer attends to everything and caches rotated keys, each with tests of its own."""

NUMBERS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
    "max_position_embeddings",
)

REASONS = {
    "kv_lora_rank": "it caches compressed latents (MLA) instead of keys and values",
    "layers_block_type": "it mixes attention with other layers",
    "ssm_state_size": "it has state-space layers, which keep no cache of positions",
    "linear_num_key_heads": "it has linear attention layers, which keep no cache of positions",
    "attention_chunk_size": "it attends in chunks",
}


class ModelError(ValueError):
    """A model can't be loaded or isn't supported; the message is one line."""


def check_supported(name: str, config: PreTrainedConfig) -> None:
    """Refuse models whose layers don't all cache every position.

    A sliding window at least as long as the longest sequence has no effect, and is removed from the configuration.

    Raises:
        ModelError: naming the model, its type and the reason.
    """
    called = f"model {name} ({config.model_type})"
    longest = getattr(config, "max_position_embeddings", None)
    longest = longest if isinstance(longest, int) else 0
    window = getattr(config, "sliding_window", None)
    if isinstance(window, int) and window >= longest > 0:
        config.sliding_window = window = None
    if config.model_type in SUPPORTED:
        _check_numbers(called, config)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    for key, reason in REASONS.items():
        if getattr(config, key, None):
            raise ModelError(f"{called} is not supported: {reason}")
    if window is not None or kinds:
        what = ", ".join(sorted(kinds)) or "sliding_attention"
        tokens = f" over {window} tokens" if window is not None else ""
        raise ModelError(
            f"{called} is not supported: it has layers of {what}{tokens}, whose cache doesn't hold every position"
        )
    if config.model_type not in SUPPORTED:
        raise ModelError(f"{called} is not supported; supported are {', '.join(SUPPORTED)}")


def _check_numbers(called: str, config: PreTrainedConfig) -> None:
    """Raises ModelError for sizes that no model has."""
    for key in NUMBERS:
        value = getattr(config, key, None)
        if type(value) is not int or value < 1:
            raise ModelError(f"{called}: config.json: {key} is {value!r}; it must be a whole number from 1 on")
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    for key in ("num_key_value_heads", "head_dim"):
        value = getattr(config, key, None)
        if value is not None and (type(value) is not int or value < 1):
            raise ModelError(f"{called}: config.json: {key} is {value!r}; it must be a whole number from 1 on")
    if getattr(config, "head_dim", None) is None and config.hidden_size % heads:
        raise ModelError(f"{called}: config.json: hidden_size {config.hidden_size} isn't a multiple of {heads} heads")
    if kv_heads is not None and heads % kv_heads:
        raise ModelError(f"{called}: config.json: {heads} heads can't share {kv_heads} num_key_value_heads")
    if config.hidden_size // heads < 2 and getattr(config, "head_dim", None) is None:
        raise ModelError(f"{called}: config.json: hidden_size {config.hidden_size} leaves nothing for {heads} heads")


_QWEN25: dict[str, Any] = {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-6}
_ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0}

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-3b": {
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
    "qwen2.5-14b": {
        "hidden_size": 5120,
        "intermediate_size": 13_824,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
    # Not a published model: small enough for benches and tests without a GPU.
    "toy": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "tie_word_embeddings": True,
    },
}
"""Published config.json numbers of Qwen2.5, for runs with random weights where no hub is within reach."""


def shape_config(name: str) -> PreTrainedConfig:
    """The configuration of a built-in shape."""
    return Qwen2Config(**_QWEN25, rope_parameters=dict(_ROPE), **SHAPES[name])
