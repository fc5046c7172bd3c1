"""`scout calibrate`: a profile of a real model, measured."""

import os
import platform
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, median, median_high
from typing import Any

import numpy as np
import torch
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kvcache.modes import parse_mode
from kvcache.plans import Plan
from models.datasets import MAX_EXAMPLES, Example, load_examples
from models.f1 import mean_interval
from models.hf.by_length import fit, measure_lengths
from models.hf.loading import LoadedModel
from models.hf.measure import RequestResult
from models.profiles import ModelProfile, ProfileError, load_file
from reports.machine import command_line, kernel_series

DEFAULT_MODES = (
    "full,int8,mixed_int4,int4,q2c@0.5+int8,q2c_pooled@0.5+int8,q2c_pooled@0.25,prompt,scout,scout@0.25,local"
)
PROBED = 16  # examples that a plan is found with
RANDOM_BASIS = "random weights: qualities mean nothing"
HEADER = (
    "# Measured: payload bytes and stage times (ms) are medians, quality is 100 x mean token F1 with a 95 % interval.\n"
)

Profile = dict[str, Any]


def examples_and_others(source: str, count: int | None) -> tuple[list[Example], list[Example]]:
    """Examples to measure, as many as are asked for, and some to find a plan with.

    The latter are the family's train split, or others of the same source; where those don't suffice, of the measured.

    Raises:
        DatasetError: they can't be had.
    """
    if source == "family":
        return load_examples(source, count), load_examples("family/train", PROBED)
    found = load_examples(source, None if count is None else min(count + PROBED, MAX_EXAMPLES))
    measured = found if count is None else found[:count]
    return measured, [*found[len(measured) :], *measured][:PROBED]


def basis_of(score: str, count: int, source: str) -> str:
    """What a quality of 100 means: a mean over so many examples of a source."""
    return f"100 x {score} on {count} examples of {source}"


def profile_of(results: Sequence[RequestResult], basis: str, plan: Plan | None, meaningless: bool = False) -> Profile:
    """A profile as `models.profiles.ModelProfile` reads it.

    Args:
        results: of `models.hf.measure.measure`.
        basis: of the qualities (see `basis_of`).
        plan: of `mixed_int4`.
        meaningless: answers of random weights: quality 0, without interval.
    """
    profile: Profile = {
        "kv_bytes": median_high(result.kv_bytes for result in results),
        "tokens": median_high(result.context for result in results),
        "edge_prefill_ms": _ms([result.edge_prefill_ms for result in results]),
        "quality_basis": RANDOM_BASIS if meaningless else basis,
    }
    if plan is not None:
        profile["mixed_int4_plan"] = list(plan)
    profile["modes"] = {}
    for mode in results[0].modes:
        found = [result.modes[mode] for result in results]
        entry: Profile = {"payload_bytes": median_high(one.payload_bytes for one in found)}
        for stage in ("encode_ms", "cloud_prefill_ms", "decode_ms"):
            entry[stage] = _ms([getattr(one, stage) for one in found])
        scores = [one.f1 for one in found]
        entry["quality"] = 0.0 if meaningless else round(100 * fmean(scores), 1)
        if not meaningless:
            entry["quality_interval"] = [round(100 * x, 1) for x in mean_interval(scores, np.random.default_rng(0))]
        if mode.is_local:
            entry["encode_ms"] = entry["cloud_prefill_ms"] = 0.0
        profile["modes"][str(mode)] = entry
    return profile


def add_lengths(
    profile: Profile,
    models: tuple[LoadedModel, LoadedModel],
    contexts: Sequence[int],
    output_tokens: int,
    progress: Callable[[str], None],
) -> None:
    """Make a profile a function of lengths: measure both models at these contexts, and fit.

    Caches are decoded by the edge's model in the cloud, and unpacked in proportion to their length.
    """
    edge, cloud = (fit(measure_lengths(model, contexts, output_tokens, progress)) for model in models)
    for model, fitted in zip(models, (edge, cloud), strict=True):
        progress(f"{model.spec.name}: times by length are at most {100 * fitted.error:.1f} % off what was measured")
    profile["answer_tokens"] = output_tokens
    profile["lengths"] = {
        "contexts": [min(contexts), max(contexts)],
        "error": round(max(edge.error, cloud.error), 4),
        "edge": edge.times.model_dump(exclude_defaults=True),
        "cloud": cloud.times.model_dump(exclude_defaults=True),
    }
    for name, mode in profile["modes"].items():
        if parse_mode(name).is_cache:
            steps = edge.times.model_dump(include={"step_ms", "step_position_us"})
            mode["cloud"] = {"prefill_token_ms": float(f"{mode['cloud_prefill_ms'] / profile['tokens']:.3g}"), **steps}


def check_profile_file(path: Path, name: str) -> None:
    """Raises as `write_profile` would, and changes nothing but that it makes the folder."""
    if path.suffix not in (".yaml", ".yml"):
        raise ProfileError(f"{path}: profiles are in .yaml files")
    mode = {"payload_bytes": 1, "decode_ms": 1.0, "quality": 0.0}
    any_profile = {"kv_bytes": 1, "edge_prefill_ms": 1.0, "quality_basis": "", "modes": {"full": mode}}
    write_profile(path, name, any_profile, "", replace=False)


def write_profile(path: Path, name: str, profile: Profile, comment: str, replace: bool = True) -> None:
    """Add a model to a profile file, or replace it there; everything else in the file stays as it is, comments too.

    Args:
        replace: without it, all is checked and the file stays.

    Raises:
        ProfileError: the file isn't a profile, can't be written, or is laid out in a way that this can't edit.
    """
    new = f"# {comment}\n{_text(name, profile)}"
    before: dict[str, Any] = {}
    mine: list[int] = []
    blocks = [HEADER, new]
    if path.exists():
        before = {model: known.model_dump() for model, known in _read(path).items()}
        blocks = [block.strip("\n") + "\n" for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))]
        mine = [number for number, block in enumerate(blocks) if _models(block) == {name}]
        blocks = [block for number, block in enumerate(blocks) if number not in mine[1:]]
        if mine:
            blocks[mine[0]] = new
        else:
            blocks.append(new)
    beside = path.with_name(f"{path.stem}.new.yaml")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text("\n".join(blocks), encoding="utf-8")
        try:
            after = _after(beside, path)
            wanted = {**before, name: ModelProfile.model_validate({"name": name, **profile}).model_dump()}
            wanted = {model: known | {"name": f"{beside.stem}/{model}"} for model, known in wanted.items()}
            if after != wanted or (name in before and not mine):
                raise ProfileError(f"{path}: its models aren't divided by blank lines; write to another file")
            if replace:
                beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise ProfileError(f"{path} can't be written: {error.strerror}") from None


def provenance() -> str:
    """The command, the machine and the date, in a line."""
    gpu = f" {torch.cuda.get_device_name()}," if torch.cuda.is_available() else ""
    kernel = kernel_series(platform.release())
    return f"{command_line()}; {os.cpu_count()} cores,{gpu} Linux {kernel}, {datetime.now(UTC):%Y-%m-%d}"


def show(console: Console, name: str, profile: Profile) -> None:
    """Print the profile as a table."""
    console.print(
        f"{name}: {profile['tokens']} tokens, prefilled on the edge in {profile['edge_prefill_ms']:g} ms; "
        f"quality: {profile['quality_basis']}",
        highlight=False,
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("mode", "payload B", "encode ms", "cloud prefill ms", "decode ms", "quality", "95 %"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    for mode, entry in profile["modes"].items():
        interval = entry.get("quality_interval")
        cells = [
            f"{entry['payload_bytes']:,}",
            *(f"{entry[s]:g}" for s in ("encode_ms", "cloud_prefill_ms", "decode_ms")),
        ]
        table.add_row(
            mode, *cells, f"{entry['quality']:g}", "to".join(f" {x:g} " for x in interval) if interval else "-"
        )
    console.print(table)


def _after(beside: Path, path: Path) -> dict[str, Any]:
    try:
        return {model: known.model_dump() for model, known in _read(beside).items()}
    except ProfileError as error:
        if "is there twice" in str(error):  # the model was beside another one
            return {}
        raise ProfileError(str(error).replace(str(beside), str(path))) from None


def _read(path: Path) -> dict[str, ModelProfile]:
    return load_file.__wrapped__(path)  # what is being written must not come from the cache, nor stay in it


def _ms(times: Sequence[float]) -> float:
    """The median, to three digits or so."""
    return float(f"{median(times):.3g}")


def _models(block: str) -> set[str]:
    """Models that a part of a file describes."""
    try:
        found = yaml.safe_load(block)
    except yaml.YAMLError:
        return set()
    return set(found) if isinstance(found, dict) else set()


def _text(name: str, profile: Profile) -> str:
    """YAML, a line for each mode, as in the files that ship."""

    def flow(value: Any) -> str:
        return (
            yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).strip().removesuffix("\n...")
        )

    lines = [f"{flow(name)}:"]
    lines += [f"  {key}: {flow(value)}" for key, value in profile.items() if key != "modes"]
    lines.append("  modes:")
    lines += [f"    {flow(mode)}: {flow(entry)}" for mode, entry in profile["modes"].items()]
    return "\n".join(lines) + "\n"
