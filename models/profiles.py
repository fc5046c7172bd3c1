"""Profiles: payload bytes, stage times and quality of every operating mode of a model, where no model itself runs."""

import math
import os
from collections.abc import Iterable
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from configs.reading import FileRefused, read_text
from configs.settings import Settings
from configs.yaml_text import YamlRefused, YamlText
from kvcache.modes import Mode, parse_mode
from models.generation import Generation
from models.lengths import DeviceTimes, Lengths, LengthTimes, Tokens

MAX_PROFILE_BYTES = 2**20
# Of a context of a profile that doesn't say: about what the papers' answers are asked of.
UNKNOWN_TOKENS = 170

Milliseconds = Annotated[float, Field(ge=0, le=3_600_000)]


def _mode_of(value: Any) -> Mode:
    if isinstance(value, Mode):
        return value
    if not isinstance(value, str):
        raise ValueError(f"a mode is a text, not {value!r}")
    return parse_mode(value)


WrittenMode = Annotated[
    Mode, PlainValidator(_mode_of, json_schema_input_type=str), PlainSerializer(str, return_type=str)
]
"""A mode in a document: text outside, a `Mode` inside."""
AllowedModes = Annotated[list[WrittenMode], Field(min_length=1)]


class ProfileError(ValueError):
    """A profile doesn't exist or can't be read; the message says what there is."""


def check_payload(mode: Mode, payload_bytes: int) -> None:
    """Raises ValueError unless `local` has no payload and every other mode has one."""
    if mode.is_local != (payload_bytes == 0):
        raise ValueError(f"mode {mode} has payload_bytes: {payload_bytes}; only `local` has 0")


def modes_once(modes: Any) -> Any:
    """What a document maps from modes, as it is. Raises ValueError if two of its keys are one mode."""
    written: dict[Mode, str] = {}
    for key in modes if isinstance(modes, dict) else ():
        try:
            mode = _mode_of(key)
        except ValueError:
            continue  # which the key's own check explains
        if mode in written:
            raise ValueError(f"{written[mode]} and {key} are the same mode")
        written[mode] = str(key)
    return modes


class ModeProfile(Settings):
    """One operating mode: what it sends, how long its stages take, how good its answers are."""

    payload_bytes: int = Field(ge=0, le=2**34, description="application bytes sent up; 0 only for `local`")
    edge_prefill_ms: Milliseconds | None = Field(default=None, description="where it differs from the model's own")
    encode_ms: Milliseconds = Field(default=0.0, description="selecting, quantizing and packing on the edge")
    cloud_prefill_ms: Milliseconds = 0.0
    decode_ms: Milliseconds = Field(description="on the cloud worker; for `local`, on the edge")
    quality: float = Field(ge=0, description="of an answer that is used, in the profile's `quality_basis`")
    quality_interval: tuple[float, float] | None = Field(default=None, description="95 %, where quality was measured")
    cloud: DeviceTimes | None = Field(
        default=None, description="times by length of the model that answers, where it isn't the one of `lengths`"
    )


class ModelProfile(Settings):
    """One model on one edge agent, in all its modes.

    Bytes and times of a request are asked with its lengths: None stands for the profile's own, which all requests of a
    profile without `lengths` have. Bytes and encoding grow in proportion to the context; what takes no time at the
    profile's own lengths takes none at others.
    """

    name: str = Field(description="`<file>/<model>`, as the scenario calls it; no two in one have the same")
    kv_bytes: int = Field(gt=0, description="the full cache; the weight of `model_aware` shares")
    tokens: int | None = Field(default=None, gt=0, description="context length behind kv_bytes, where known")
    answer_tokens: Tokens = Field(
        default=32, description="of the answers behind decode_ms; counted by batching workers"
    )
    edge_prefill_ms: Milliseconds
    quality_basis: str = Field(description="what 100 means")
    mixed_int4_plan: list[str] | None = Field(default=None, min_length=1, description="the quantizer of every layer")
    lengths: LengthTimes | None = Field(default=None, description="times by length; default: all requests are alike")
    modes: dict[WrittenMode, ModeProfile] = Field(min_length=1, max_length=256)

    @field_validator("modes", mode="before")
    @classmethod
    def _no_mode_twice(cls, modes: Any) -> Any:
        return modes_once(modes)

    @model_validator(mode="after")
    def _only_local_sends_nothing(self) -> Self:
        for mode, entry in self.modes.items():
            check_payload(mode, entry.payload_bytes)
            if entry.cloud is not None and self.lengths is None:
                raise ValueError(f"mode {mode} has times by length (cloud), but the profile has no `lengths`")
        if self.lengths is not None and self.tokens is None:
            raise ValueError("`lengths` needs `tokens`, the context behind payload_bytes and encode_ms")
        return self

    @property
    def own_lengths(self) -> Lengths:
        """Of requests that have no lengths of their own."""
        return Lengths(self.tokens or UNKNOWN_TOKENS, self.answer_tokens)

    @cached_property
    def _codes(self) -> dict[Mode, int]:
        return {mode: code for code, mode in enumerate(self.modes)}

    @cached_property
    def _modes(self) -> tuple[Mode, ...]:
        return tuple(self.modes)

    def code_of(self, mode: Mode) -> int:
        """The number of a mode on the wire: its place in the profile. Raises KeyError for a mode it doesn't have."""
        return self._codes[mode]

    def mode_at(self, code: int) -> Mode:
        """The mode of a number on the wire. Raises IndexError if there is none."""
        return self._modes[code]

    def payload_of(self, mode: Mode, lengths: Lengths | None = None) -> int:
        """Application bytes that a mode sends up."""
        size = self.modes[mode].payload_bytes
        return max(1, round(size * self._share(lengths))) if lengths and size else size

    def edge_prefill_of(self, mode: Mode, lengths: Lengths | None = None) -> float:
        """Edge prefill time of a mode in ms."""
        own = self.modes[mode].edge_prefill_ms
        fixed_ms = self.edge_prefill_ms if own is None else own
        return self._times.edge.prefill_of(lengths.context_tokens) if lengths and fixed_ms else fixed_ms

    def encode_of(self, mode: Mode, lengths: Lengths | None = None) -> float:
        """Time in ms to select, quantize and pack on the edge."""
        fixed_ms = self.modes[mode].encode_ms
        return fixed_ms * self._share(lengths) if lengths else fixed_ms

    def cloud_prefill_of(self, mode: Mode, lengths: Lengths | None = None) -> float:
        """Cloud prefill time of a mode in ms."""
        fixed_ms = self.modes[mode].cloud_prefill_ms
        return self._answers(mode).prefill_of(lengths.context_tokens) if lengths and fixed_ms else fixed_ms

    def decode_of(self, mode: Mode, lengths: Lengths | None = None) -> float:
        """Decode time of a mode in ms, of a request alone: on the cloud worker, or on the edge for `local`."""
        if not lengths:
            return self.modes[mode].decode_ms
        return self._answers(mode).decode_of(lengths.context_tokens * mode.retention, lengths.output_tokens)

    def generation_of(self, mode: Mode, lengths: Lengths | None = None) -> Generation:
        """What a mode asks of a cloud worker that batches by iteration; alone it takes `cloud_prefill_of` and
        `decode_of`, if it is prefilled in one piece.

        The time of a prefill is spread over the kept positions. The profile's own lengths are `tokens` (170 if it
        doesn't say) and `answer_tokens`, whose steps and prefilled positions all take equally long.
        """
        context, output = lengths or self.own_lengths
        attended = context * mode.retention
        kept = max(1, math.ceil(attended))
        prefill_ms = self.modes[mode].cloud_prefill_ms
        if lengths:
            times = self._answers(mode)
            spread = context / kept
            token_ms, pair_ms = times.prefill_token_ms * spread, times.prefill_pair_ns * 1e-6 * spread * spread
            step_ms, position_ms, start_ms = times.step_ms, times.step_position_us * 1e-3, times.prefill_ms
        else:
            step_ms, position_ms, start_ms, pair_ms = self.modes[mode].decode_ms / output, 0.0, 0.0, 0.0
            # Where nothing is prefilled, tokens whose positions were lost are decoded again.
            token_ms = prefill_ms / kept or step_ms
        of = self.name, self.modes[mode].cloud
        costs = start_ms, token_ms, pair_ms, step_ms, position_ms
        return Generation(of, kept, output, not prefill_ms, attended, *costs)

    def compute_ms(self, mode: Mode, lengths: Lengths | None = None) -> float:
        """All compute of a mode in ms, edge and cloud, without transfer and queueing."""
        edge_ms = self.edge_prefill_of(mode, lengths) + self.encode_of(mode, lengths)
        return edge_ms + self.cloud_prefill_of(mode, lengths) + self.decode_of(mode, lengths)

    def common_prefill_ms(self, modes: Iterable[Mode], lengths: Lengths | None = None) -> float:
        """The edge prefill time common to some modes, in ms: what can be done before one of them is chosen."""
        return min(self.edge_prefill_of(mode, lengths) for mode in modes)

    @property
    def _times(self) -> LengthTimes:
        """Raises ValueError if the profile has one length only."""
        if self.lengths is None:
            raise ValueError(f"profile {self.name} has no `lengths`: all its requests are alike")
        return self.lengths

    def _share(self, lengths: Lengths | None) -> float:
        """A context's length as a multiple of the profile's own."""
        return lengths.context_tokens / self.tokens if lengths and self.tokens and self._times else 1.0

    def _answers(self, mode: Mode) -> DeviceTimes:
        """The times of the model that answers in a mode, where it does."""
        return self._times.edge if mode.is_local else self.modes[mode].cloud or self._times.cloud


@cache
def load_file(path: Path) -> dict[str, ModelProfile]:
    """All models of one profile file, by model name.

    Raises:
        ProfileError: the file is missing or not a valid profile.
    """
    try:
        found = YamlText(read_text(path, MAX_PROFILE_BYTES))
    except FileNotFoundError:
        raise ProfileError(f"no profile file {path}") from None
    except FileRefused as error:
        raise ProfileError(str(error)) from None
    except YamlRefused as error:
        place = f"{path}:{error.line}" if error.line else str(path)
        what = f"{'.'.join(map(str, error.where))}: {error.reason}" if error.where else f"not YAML: {error.reason}"
        raise ProfileError(f"{place}: {what}") from None
    raw = found.data
    if not isinstance(raw, dict) or not all(isinstance(profile, dict) for profile in raw.values()):
        raise ProfileError(f"{path} must map model names to profiles")
    for model, profile in raw.items():
        if "name" in profile:
            raise ProfileError(
                f"{path}:{found.lines[str(model), 'name']}: {model}.name: a model is named by its key alone"
            )
    named = {model: {"name": f"{path.stem}/{model}", **profile} for model, profile in raw.items()}
    try:
        return TypeAdapter(dict[str, ModelProfile]).validate_python(named)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise ProfileError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def builtin_files() -> dict[str, Path]:
    """The profile files that ship with the project, by name."""
    folder = Path(str(resources.files("configs"))) / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_profile(name: str, base_dir: Path | None = None) -> ModelProfile:
    """The profile `<file>/<model>`: a file that ships with the project, or `path/to/file.yaml/<model>`.

    Args:
        name: such as `measured/qwen2.5-7b` or `my/profiles.yaml/qwen2.5-7b` (relative to `base_dir`).

    Raises:
        ProfileError: no such file or model; the message lists what there is.
    """
    file_name, _, model = name.rpartition("/")
    files = builtin_files()
    if file_name.endswith((".yaml", ".yml")):
        models = load_file(Path(os.path.abspath((base_dir or Path()) / file_name)))
    elif file_name in files:
        models = load_file(files[file_name])
    else:
        known = [f"{stem}/{model}" for stem, path in files.items() for model in load_file(path)]
        raise ProfileError(f"no profile {name!r}; there are {', '.join(known)}, or path/to/file.yaml/<model>")
    if model not in models:
        raise ProfileError(f"no model {model!r} in profile file {file_name!r}; there are {', '.join(models)}")
    # The name is a key of options, sizes and models in a run: two files of one name must not have one key.
    found = models[model]
    return found if found.name == name else found.model_copy(update={"name": name})
