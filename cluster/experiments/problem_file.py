"""An allocation problem as a JSON file: who asks for what, on which uplink, by when."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)

from agents.offer import payload_options
from allocator.problem import AgentInfo, ModeOption, Problem, Request
from cluster.scenario.json_document import JsonFile
from cluster.scenario.shipped import find_problem
from cluster.scenario.yaml_document import DocumentError
from kvcache.modes import Mode
from models.profiles import (
    AllowedModes,
    ModelProfile,
    ProfileError,
    WrittenMode,
    check_payload,
    load_profile,
    modes_once,
)
from netem.channels import MIN_CHANNEL_MBPS

MAX_AGENTS = 100_000


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!a} has characters that can't be printed")
    return text


Name = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_printable)]
ProfileName = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_printable)]
Milliseconds = Annotated[float, Field(ge=0, le=3_600_000)]
Deadline = Annotated[float, Field(gt=0, le=3_600_000)]


class Strict(BaseModel):
    """Base of all parts: unknown keys are errors, and so is `"5"` for 5."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class OwnMode(Strict):
    """A mode written out in the problem."""

    payload_bytes: int = Field(ge=0, le=2**34, description="0 for `local`, and only for it")
    edge_ms: Milliseconds = Field(default=0.0, description="all compute on the edge, from the start on")
    cloud_ms: Milliseconds = Field(default=0.0, description="all compute on the cloud worker")
    quality: float = Field(ge=0, le=1e6)


def _shape(modes: object) -> str:
    return "own" if isinstance(modes, dict) else "allowed"


Modes = Annotated[
    Annotated[AllowedModes, Tag("allowed")]
    | Annotated[dict[WrittenMode, OwnMode], BeforeValidator(modes_once), Field(min_length=1), Tag("own")],
    Discriminator(_shape),
]


class ProblemAgent(Strict):
    """One agent with one request: the modes of a profile (`modes` lists those allowed), or modes of its own."""

    name: Name | None = Field(default=None, description="default: its place in the list, from 0 on")
    profile: ProfileName | None = Field(default=None, description="`<file>/<model>`, as in scenarios")
    modes: Modes | None = None
    kv_bytes: int | None = Field(
        default=None, gt=0, le=2**40, description="its full cache; default: the profile's, or its largest payload"
    )
    deadline_ms: Deadline | None = Field(default=None, description="default: the problem's")
    weight: float = Field(default=1.0, gt=0, le=1e6)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.profile is None and not isinstance(self.modes, dict):
            raise ValueError('needs a profile, such as "paper_b/qwen2.5-7b", or modes of its own, {"int4": {...}}')
        if self.profile is not None and isinstance(self.modes, dict):
            raise ValueError("has a profile and modes of its own: one or the other, or a list of the profile's modes")
        if isinstance(self.modes, dict):
            for mode, own in self.modes.items():
                check_payload(mode, own.payload_bytes)
        return self


class ProblemFile(Strict):
    """All of a problem. Every agent asks at once, as in the papers' rounds."""

    uplink_mbps: float = Field(ge=MIN_CHANNEL_MBPS, le=1e6)
    deadline_ms: Deadline
    cloud_slots: int | None = Field(
        default=None, ge=1, le=10_000, description="free cloud workers, one request each at a time; default: no limit"
    )
    modes: AllowedModes | None = Field(default=None, description="allowed, where an agent doesn't say")
    agents: list[ProblemAgent] = Field(min_length=1, max_length=MAX_AGENTS)


@dataclass(frozen=True, slots=True)
class NamedProblem:
    """A problem and what its agents (and requests) 0, 1, ... are called."""

    problem: Problem
    names: Sequence[str | int]


def load_problem(given: str | Path | Mapping[str, Any]) -> NamedProblem:
    """Read and check a problem.

    Args:
        given: its file, the name of one that ships with the project, such as `eight-agents`, or what a file would hold.

    Raises:
        DocumentError: in one line: file, line, key, what is wrong and what is allowed.
    """
    document = _of(given) if isinstance(given, Mapping) else JsonFile.read(find_problem(given))
    try:
        file = ProblemFile.model_validate(document.data)
    except ValidationError as error:
        raise document.explain(error, ProblemFile) from None
    return _Builder(document, file).build()


def _of(given: Mapping[str, Any]) -> JsonFile:
    try:
        return JsonFile(Path("problem"), json.dumps(given, indent=2))
    except (TypeError, ValueError) as error:
        raise DocumentError(f"problem: not JSON: {error}") from None


class _Builder:
    """Turns a checked file into a problem; equal agents share their options."""

    def __init__(self, document: JsonFile, file: ProblemFile) -> None:
        self._document = document
        self._file = file
        self._profiles: dict[str, ModelProfile] = {}
        self._options: dict[tuple[str, tuple[Mode, ...] | None], tuple[ModeOption, ...]] = {}

    def build(self) -> NamedProblem:
        file = self._file
        names: list[str | int] = []
        places: dict[str, int] = {}
        agents, requests = [], []
        for i, agent in enumerate(file.agents):
            name = i if agent.name is None else agent.name
            shown = unicodedata.normalize("NFC", str(name)).strip()  # an unnamed agent is shown by its place
            if shown in places:
                other = places[shown]
                unnamed = " (it has none of its own, and is called by its place)" if names[other] == other else ""
                message = f"agent {other} has this name already{unnamed}"
                raise self._document.error(("agents", i, "name"), message)
            places[shown] = i
            names.append(name)
            if isinstance(agent.modes, dict):
                options = tuple(
                    ModeOption(mode, own.payload_bytes, own.edge_ms, own.cloud_ms, own.quality)
                    for mode, own in agent.modes.items()
                )
                kv_bytes = max(1, *(option.wire_bytes for option in options))
            else:
                assert agent.profile is not None, "a file without either has been refused"
                options = self._options_of(i, agent.profile, agent.modes)
                kv_bytes = self._profiles[agent.profile].kv_bytes
            agents.append(AgentInfo(i, agent.kv_bytes or kv_bytes))
            requests.append(Request(i, i, (agent.deadline_ms or file.deadline_ms) / 1e3, options, agent.weight))
        self._check_allowed()
        slots = None if file.cloud_slots is None else (0.0,) * file.cloud_slots
        problem = Problem(file.uplink_mbps, tuple(agents), tuple(requests), workers_free_s=slots)
        return NamedProblem(problem, names)

    def _options_of(self, i: int, name: str, own: list[Mode] | None) -> tuple[ModeOption, ...]:
        key = (name, None if own is None else tuple(own))
        if key not in self._options:
            profile = self._profile(i, name)
            for mode in own or ():
                if mode not in profile.modes:
                    where = ("agents", i, "modes")
                    there_are = ", ".join(map(str, profile.modes))
                    raise self._document.error(where, f"{name} has no mode '{mode}'; it has {there_are}")
            allowed = own or self._file.modes or list(profile.modes)
            self._options[key] = payload_options(profile, allowed)
            if not self._options[key]:
                message = f"{name} has none of the allowed modes, only {', '.join(map(str, profile.modes))}"
                raise self._document.error(("agents", i, "profile"), message)
        return self._options[key]

    def _profile(self, i: int, name: str) -> ModelProfile:
        if name not in self._profiles:
            try:
                self._profiles[name] = load_profile(name, self._document.path.resolve().parent)
            except ProfileError as error:
                raise self._document.error(("agents", i, "profile"), str(error)) from None
        return self._profiles[name]

    def _check_allowed(self) -> None:
        known = {mode for profile in self._profiles.values() for mode in profile.modes}
        for i, mode in enumerate(self._file.modes or ()):
            if known and mode not in known:
                there_are = ", ".join(sorted(map(str, known)))
                raise self._document.error(("modes", i), f"no agent's profile has mode '{mode}'; there are {there_are}")


__all__ = ["DocumentError", "NamedProblem", "load_problem"]
