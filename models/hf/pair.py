"""The real models of a scenario's group: edge and cloud specifications, examples, and compatibility checks."""

from collections.abc import Collection
from dataclasses import replace
from functools import cache
from pathlib import Path

from kvcache.modes import MIXED, Mode
from kvcache.plans import Plan, plan_of
from models.datasets import Example, load_examples
from models.hf.architecture import ModelError
from models.hf.loading import ModelSpec, check_pair, default_device, default_dtype
from models.hf.prompts import random_examples
from models.profiles import ModelProfile
from models.settings import ModelSettings


def device_of(settings: ModelSettings) -> str:
    """The device for models of this process."""
    return default_device() if settings.device == "auto" else settings.device


def specs_of(settings: ModelSettings, base_dir: Path) -> tuple[ModelSpec, ModelSpec]:
    """The specifications of the edge's and the cloud's model."""
    device = device_of(settings)
    dtype = default_dtype(device) if settings.dtype == "auto" else settings.dtype
    edge = ModelSpec(settings.source(settings.edge, base_dir), settings.weights, dtype, device, settings.seed)
    return edge, replace(edge, name=settings.source(settings.cloud, base_dir))


@cache
def examples_of(settings: ModelSettings, base_dir: Path) -> list[Example]:
    """The examples that requests use; edge and cloud have the same list and refer to contexts by index.

    Raises:
        DatasetError: there are none.
    """
    if settings.weights == "random":
        return random_examples(settings.count, settings.context_tokens, seed=settings.seed)
    return load_examples(settings.examples, settings.count, settings.seed, base_dir)


def plan_for(mode: Mode, profile: ModelProfile) -> str | Plan:
    """The quantizers of a cache mode's layers; for `mixed_int4`, the profile's plan.

    Raises:
        ModelError: the profile has none.
        ValueError: no model knows this mode.
    """
    mode.check_runnable()
    if mode.quantizer != MIXED:
        return str(mode.quantizer)
    if profile.mixed_int4_plan is None:
        raise ModelError(f"mode mixed_int4 needs the `mixed_int4_plan` of profile {profile.name}: run scout calibrate")
    return plan_of(profile.mixed_int4_plan, len(profile.mixed_int4_plan))


def check(settings: ModelSettings, profile: ModelProfile, modes: Collection[Mode], base_dir: Path) -> None:
    """Check that these models and modes can run, without loading weights.

    Raises:
        ModelError, DatasetError, ValueError: one line: a model that isn't there or not supported, tokenizers that
            differ where `scout` is allowed, an unknown mode, no examples.
    """
    for mode in modes:
        if mode.is_cache:
            plan_for(mode, profile)
    edge, cloud = specs_of(settings, base_dir)
    check_pair(edge, cloud, scout=any(mode.needs_context for mode in modes))
    examples_of(settings, base_dir)
