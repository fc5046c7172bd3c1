"""Loading of models by hub name, path or built-in shape, and checks that two models are compatible."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file, logging

from kvcache.cache import Geometry
from models.family import family_path
from models.hf.architecture import SHAPES, ModelError, check_supported, shape_config
from models.hf.attention import ATTENTION

Weights = Literal["pretrained", "random"]
Dtype = Literal["bfloat16", "float16", "float32"]
FAMILY = "family/"
TOKENIZER_FILE = "tokenizer.json"  # tokenizers in other files can't be compared
LAYER = re.compile(r"\blayers\.(\d+)\.")
LINE_ENDS = ("\n", "\u010a", "<0x0A>")  # as vocabularies write them: as it is, as a byte, as a byte's name
ANSWERED = "answered"
SAMPLES = 64  # values of each parameter that make up the fingerprint

logging.disable_progress_bar()  # for reading weights from disk; downloads keep theirs


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The specification of a model.

    Attributes:
        name: a hub name, a path to a folder, a size of the small family such as `family/tiny`, or with random weights
            also a built-in shape such as `qwen2.5-7b`.
        weights: `random` needs only a configuration; shapes and times are real, answers are meaningless.
        dtype: `bfloat16`, `float16` or `float32`.
        device: torch's name of the device.
        seed: of random weights; on the same kind of device the same seed gives the same weights.
    """

    name: str
    weights: Weights = "pretrained"
    dtype: Dtype = "bfloat16"
    device: str = "cpu"
    seed: int = 0

    @property
    def source(self) -> str:
        """The source that transformers loads from. Raises ModelError for an unknown size of the small family."""
        if not self.name.startswith(FAMILY):
            return self.name
        try:
            return str(family_path(self.name.removeprefix(FAMILY)))
        except ValueError as error:
            raise ModelError(f"model {self.name}: {error}") from None


@dataclass(frozen=True, eq=False, slots=True)
class LoadedModel:
    """A model on its device, ready to run.

    Attributes:
        tokenizer: None for random weights without one.
        fingerprint: 16 bytes, equal for models that can use each other's caches.
        stop_tokens: any of these ends an answer.
        line_ends: tokens with a line's end in them, which end an answer of one line.
        geometry: its caches' geometry.
        max_positions: the longest sequence.
    """

    spec: ModelSpec
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast | None
    fingerprint: bytes
    stop_tokens: frozenset[int]
    geometry: Geometry
    max_positions: int
    line_ends: frozenset[int] = frozenset()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vocabulary(self) -> int:
        """The number of token ids with embeddings."""
        return int(self.model.config.vocab_size)

    def check_tokens(self, tokens: list[int]) -> None:
        """Raise ValueError for unknown tokens; on a GPU they would crash the process."""
        if tokens and not (min(tokens) >= 0 and max(tokens) < self.vocabulary):
            raise ValueError(f"tokens outside 0..{self.vocabulary - 1} for {self.spec.name}")


def load_model(spec: ModelSpec) -> LoadedModel:
    """Load a model, or build it with random weights right on its device.

    Raises:
        ModelError: it doesn't exist, isn't supported, or doesn't fit the device.
    """
    if spec.name in SHAPES and spec.weights != "random" and not Path(spec.name).exists():
        raise ModelError(f"{spec.name} is a built-in shape: it has no weights but `weights: random`")
    builtin = spec.name in SHAPES and spec.weights == "random"
    config = shape_config(spec.name) if builtin else _read(spec, AutoConfig)
    check_supported(spec.name, config)
    tokenizer = None if builtin else _tokenizer(spec)
    try:
        device = torch.empty(0, device=spec.device).device
        if spec.weights == "random":
            return build_random(spec, config, tokenizer)
        settings = {"config": config, "dtype": getattr(torch, spec.dtype), "attn_implementation": ATTENTION}
        model = _weights(spec, settings).to(device)
    except ModelError:
        raise
    except torch.OutOfMemoryError:
        raise ModelError(f"model {spec.name} in {spec.dtype} doesn't fit the memory of {spec.device}") from None
    except Exception as error:  # no such device, a torch without CUDA, or whatever an odd configuration makes of it
        raise ModelError(f"model {spec.name} on {spec.device}: {_one_line(error)}") from None
    return _loaded(spec, model, tokenizer)


def build_random(
    spec: ModelSpec, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast | None = None
) -> LoadedModel:
    """A model with random weights of any configuration.

    Raises:
        ModelError: the configuration isn't supported.
    """
    check_supported(spec.name, config)
    devices = [torch.device(spec.device)] if spec.device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices), torch.device(spec.device):
        torch.manual_seed(spec.seed)
        dtype = getattr(torch, spec.dtype)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    return _loaded(spec, model, tokenizer)


def _loaded(spec: ModelSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None) -> LoadedModel:
    model.eval().requires_grad_(False)
    config = model.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    geometry = Geometry(config.num_hidden_layers, kv_heads, head_dim, model.dtype)
    longest = int(config.max_position_embeddings)
    stops, lines = _stop_tokens(model, tokenizer), _line_ends(tokenizer)
    return LoadedModel(spec, model, tokenizer, _fingerprint(spec, model), stops, geometry, longest, lines)


def _stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None) -> frozenset[int]:
    """All that generation_config.json, config.json and the tokenizer name, and what ends a turn in a template."""
    said = [getattr(model.generation_config, "eos_token_id", None), getattr(model.config, "eos_token_id", None)]
    if tokenizer is not None:
        said += [tokenizer.eos_token_id, _end_of_turn(tokenizer)]
    return frozenset(
        token for ends in said for token in (ends if isinstance(ends, list) else [ends]) if token is not None
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The special token that the chat template puts after an answer."""
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ANSWERED}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # whoever uses the template hears of it
        return None
    after = text.rpartition(ANSWERED)[2].lstrip()
    first = next(iter(tokenizer(after, add_special_tokens=False)["input_ids"]), None)
    return first if first in tokenizer.all_special_ids else None


def _line_ends(tokenizer: PreTrainedTokenizerFast | None) -> frozenset[int]:
    if tokenizer is None:
        return frozenset()
    likely = (number for token, number in tokenizer.get_vocab().items() if any(mark in token for mark in LINE_ENDS))
    return frozenset(number for number in likely if "\n" in tokenizer.decode([number]))


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: str) -> Dtype:
    """Of models on a device. On a CPU float32 is the faster; a cache takes 16 bits a value on the wire in either."""
    return "bfloat16" if device.startswith("cuda") else "float32"


def _fingerprint(spec: ModelSpec, model: PreTrainedModel) -> bytes:
    """A hash of everything a cache depends on: configuration and weights (as bfloat16, whatever the dtype)."""
    keys = "model_type hidden_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size rope_parameters"
    geometry = {key: getattr(model.config, key, None) for key in keys.split()}
    digest = hashlib.blake2b(json.dumps(geometry, sort_keys=True, default=str).encode(), digest_size=16)
    if spec.weights == "random":  # random weights differ by device and need no identity
        digest.update(f"random {spec.seed}".encode())
        return digest.digest()
    samples = [p.detach().flatten()[:: max(1, p.numel() // SAMPLES)][:SAMPLES] for p in model.parameters()]
    digest.update(torch.cat([s.bfloat16() for s in samples]).view(torch.int16).cpu().numpy().tobytes())
    return digest.digest()


def _tokenizer(spec: ModelSpec) -> PreTrainedTokenizerFast | None:
    # If there is no tokenizer, transformers would construct an empty one.
    settings = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    if not cached_file(spec.source, TOKENIZER_FILE, **settings):
        if spec.weights == "random":
            return None
        raise ModelError(f"model {spec.name}: no tokenizer: no {TOKENIZER_FILE} is there")
    # Not AutoTokenizer: whatever a folder's tokenizer.json says, transformers 5 puts the architecture's own parts in.
    tokenizer: PreTrainedTokenizerFast = _read(spec, PreTrainedTokenizerFast)
    return tokenizer


def _weights(spec: ModelSpec, settings: dict[str, Any]) -> Any:
    """A model whose every weight is in its files. Raises ModelError for one that would be filled up or cut."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers' own report of what it made up is long, and goes on
    try:
        model, found = _read(
            spec,
            AutoModelForCausalLM,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # which are in `found`, then
            output_loading_info=True,
            **settings,
        )
    finally:
        logging.set_verbosity(verbosity)
    layers = model.config.num_hidden_layers
    beyond = [key for key in found["unexpected_keys"] if (at := LAYER.search(key)) and int(at[1]) >= layers]
    differing = sorted(key if isinstance(key, str) else str(key[0]) for key in found["mismatched_keys"])
    missing = sorted(found["missing_keys"])
    said = []
    if missing:
        others = sorted(set(found["unexpected_keys"]) - set(beyond))
        instead = f" (there are others, such as {others[0]})" if others else ""
        said.append(f"{len(missing)} missing, such as {missing[0]}{instead}")
    if differing:
        said.append(f"{len(differing)} of another size, such as {differing[0]}")
    if beyond:
        said.append(f"{len(beyond)} of more than its {layers} layers, such as {min(beyond)}")
    if said:
        raise ModelError(f"model {spec.name}: its .safetensors don't hold what config.json says: {'; '.join(said)}")
    for key, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"model {spec.name}: weight {key} has values that aren't finite in {spec.dtype}")
    return model


def _read(spec: ModelSpec, kind: Any, **settings: Any) -> Any:
    """Call `from_pretrained`; its errors become one-line ModelErrors."""
    try:
        return kind.from_pretrained(spec.source, trust_remote_code=False, **settings)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # networks and third-party code can raise anything
        what = {AutoConfig: "configuration", PreTrainedTokenizerFast: "tokenizer"}.get(kind, "weights")
        raise ModelError(f"model {spec.name}: no {what}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else text[:237] + "..."


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> bytes:
    """A hash of everything tokenization depends on: vocabulary, merges, normalizer, pre-tokenizer, added tokens."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = {key: value for key, value in parts["model"].items() if key not in ("dropout", "fuse_unk")}
    added = sorted((token["id"], token["content"]) for token in parts["added_tokens"])
    wanted = [model, parts.get("normalizer"), parts.get("pre_tokenizer"), added]
    text = json.dumps(wanted, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def check_pair(edge: ModelSpec, cloud: ModelSpec, scout: bool) -> None:
    """Check both models' configurations and tokenizers, without loading weights.

    Args:
        scout: whether both models must tokenize alike.

    Raises:
        ModelError: a model doesn't exist or isn't supported, or the tokenizers differ.
    """
    tokenizers = []
    for spec in (edge, cloud):
        builtin = spec.name in SHAPES and spec.weights == "random"
        if spec.name in SHAPES and not builtin and not Path(spec.name).exists():
            raise ModelError(f"{spec.name} is a built-in shape: it has no weights but `weights: random`")
        check_supported(spec.name, shape_config(spec.name) if builtin else _read(spec, AutoConfig))
        tokenizers.append(None if builtin else _tokenizer(spec))
    if scout and not _same(*tokenizers):
        raise ModelError(
            f"mode scout: the tokenizers of {edge.name} and {cloud.name} differ, and so do their positions"
        )


def same_tokenizer(a: LoadedModel, b: LoadedModel) -> bool:
    """Whether token positions mean the same to both models, as `scout` requires."""
    return _same(a.tokenizer, b.tokenizer)


def _same(a: PreTrainedTokenizerFast | None, b: PreTrainedTokenizerFast | None) -> bool:
    """Models without tokenizers (random weights) are always compatible."""
    if a is None or b is None:
        return a is b
    return tokenizer_fingerprint(a) == tokenizer_fingerprint(b)
