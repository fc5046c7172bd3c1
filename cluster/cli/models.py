"""Commands that run real models: measure a profile; measure how modes and selections change the answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.cli.console import EXIT_FAILED, EXIT_INTERRUPTED, Json, ResultStream, console, fail, progress

if TYPE_CHECKING:
    from kvcache.modes import Mode
    from kvcache.plans import Plan
    from models.datasets import Example
    from models.hf.loading import LoadedModel
    from models.tasks import Task

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]

CloudName = Annotated[str, typer.Option("--cloud", help="The cloud's model, in the same forms as the edge's.")]
Source = Annotated[
    str,
    typer.Option("--examples", help="family, a file (.json, .jsonl), or owner/name on the hub; see docs/quality.md."),
]
Count = Annotated[
    int | None, typer.Option(min=1, help="Number of examples; default: 500 of the family, all of a file.")
]
Modes = Annotated[str | None, typer.Option(help="Operating modes, separated by commas; default: eleven.")]
DeviceOption = Annotated[Device, typer.Option(help="The device of both models; auto: a GPU if there is one.")]
DtypeOption = Annotated[Dtype, typer.Option(help="The number type; auto: bfloat16 on a GPU, float32 on a CPU.")]
NewTokens = Annotated[int | None, typer.Option(min=1, help="The longest answer in tokens; default: the task's.")]
TaskName = Annotated[str, typer.Option("--task", help="What prompts say, how answers are scored: see docs/models.md.")]
QUERY_TOKENS = 32  # of random examples


def calibrate(
    edge: Annotated[
        str, typer.Argument(help="The edge's model: family/tiny, a hub name, a folder, or (random) a shape.")
    ],
    cloud: CloudName,
    out: Annotated[Path, typer.Option(help="The profile file; replaces a model of the same name in it.")],
    examples: Source = "family",
    count: Count = None,
    modes: Modes = None,
    weights: Annotated[
        Literal["pretrained", "random"], typer.Option(help="random: true times and bytes, meaningless answers.")
    ] = "pretrained",
    context_tokens: Annotated[int, typer.Option(min=1, help="Context of the examples for random weights.")] = 1024,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    max_new_tokens: NewTokens = None,
    task: TaskName = "qa",
    lengths: Annotated[
        str | None,
        typer.Option(help="Contexts in tokens, such as 256,1024,4096: the profile becomes a function of lengths."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name in the file; default: the last part of EDGE.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a profile of two real models: payload bytes, stage times and F1 in every operating mode."""
    with real_models():
        from cluster.experiments import calibrate as calibration
        from kvcache.modes import parse_modes
        from models.hf.by_length import check_contexts
        from models.hf.measure import RequestResult, measure
        from models.tasks import task_of

        asked = task_of(task)
        result = ResultStream(as_json)
        wanted = parse_modes(modes or calibration.DEFAULT_MODES)
        called = name or edge.rstrip("/").rpartition("/")[2]
        calibration.check_profile_file(out, called)  # before minutes of work that could not be kept
        contexts = parse_contexts(lengths)
        models = _load(edge, cloud, weights, device, dtype, any(mode.needs_context for mode in wanted))
        new = max_new_tokens or asked.answer_tokens
        if contexts:
            check_contexts(contexts, new, *models)
        measured, others = _examples(models, examples, count, context_tokens if weights == "random" else None)
        plan = _plan(models[0], wanted, others, max_new_tokens, asked)
        results: list[RequestResult] = []
        exit_code = _to_the_end(
            lambda: measure(measured, *models, wanted, max_new_tokens, plan, progress, results, asked)
        )
        if exit_code:
            if not results:
                raise typer.Exit(exit_code)
            progress(f"cut short: this is a profile of the {len(results)} examples measured so far")
        basis = calibration.basis_of("token F1", len(results), examples)
        profile = calibration.profile_of(results, basis, plan, weights == "random")
        if contexts and not exit_code:
            exit_code = _to_the_end(lambda: calibration.add_lengths(profile, models, contexts, new, progress))
        calibration.write_profile(out, called, profile, f"{calibration.provenance()}; {models[0].spec.dtype}")
    result.write({called: profile}, lambda: calibration.show(console, called, profile))
    if exit_code:
        raise typer.Exit(exit_code)


def quality(
    edge: Annotated[str, typer.Option(help="The edge's model: family/tiny, a hub name, or a folder.")] = "family/tiny",
    cloud: CloudName = "family/base",
    examples: Source = "family",
    count: Count = None,
    modes: Modes = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    max_new_tokens: NewTokens = None,
    task: TaskName = "qa",
    as_json: Json = False,
) -> None:
    """Measure the answer quality of two real models by mode, selection and scouting. Takes minutes."""
    with real_models():
        from cluster.experiments.calibrate import DEFAULT_MODES
        from cluster.experiments.quality import Comparison, show
        from kvcache.modes import parse_modes
        from models.tasks import task_of

        asked = task_of(task)
        result = ResultStream(as_json)
        wanted = parse_modes(modes or DEFAULT_MODES)
        models = _load(edge, cloud, "pretrained", device, dtype, scouts=True)
        measured, others = _examples(models, examples, count, None)
        plan = _plan(models[0], wanted, others, max_new_tokens, asked)
        found = Comparison(*models, wanted, plan, max_new_tokens, asked).run(measured, progress)
    result.write(found, lambda: show(console, found))


def _plan(
    edge: "LoadedModel", modes: "Sequence[Mode]", others: "Sequence[Example]", max_new_tokens: int | None, task: "Task"
) -> "Plan | None":
    """Of `mixed_int4`, if that is among the modes."""
    from kvcache.modes import MIXED
    from models.hf.measure import find_plan

    if not any(mode.quantizer == MIXED for mode in modes):
        return None
    return find_plan(edge, others, max_new_tokens=max_new_tokens, task=task)


def parse_contexts(text: str | None) -> list[int]:
    """Numbers by comma; none if there is no text. Raises ValueError."""
    try:
        found = [int(number) for number in text.split(",")] if text else []
        if any(number < 1 for number in found):
            raise ValueError
    except ValueError:
        raise ValueError(f"--lengths {text}: numbers by comma, such as 256,1024,4096") from None
    return found


def _examples(
    models: "tuple[LoadedModel, LoadedModel]", source: str, count: int | None, random: int | None
) -> "tuple[list[Example], list[Example]]":
    """Examples to measure and others for a plan; `random`: token ids, so many a context."""
    from cluster.experiments.calibrate import PROBED, examples_and_others
    from models.hf.prompts import random_examples

    if random is None:
        return examples_and_others(source, count)
    vocabulary = min(model.vocabulary for model in models)
    made = random_examples((count or 10) + PROBED, random, QUERY_TOKENS, vocabulary=vocabulary)
    return made[PROBED:], made[:PROBED]


def _to_the_end(measure: Callable[[], object]) -> int:
    """Measure; if that is cut short, say by what, and return the exit code: what was measured is kept."""
    import torch

    try:
        measure()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except torch.OutOfMemoryError:
        progress("out of memory on the GPU; take shorter contexts, a smaller model, or --device cpu")
        return EXIT_FAILED
    return 0


@contextmanager
def real_models(cores: int = 1) -> Iterator[None]:
    """Report mistakes in one line; compute with one thread, as the actors of a live run do, or with more."""
    try:
        import torch
    except ImportError:
        fail("real models need torch and transformers: pip install 'scout-emulator[models]'")
    threads = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        yield
    except ValueError as error:  # models, modes, data sets and profiles raise one-line messages
        fail(error)
    except torch.OutOfMemoryError:
        fail("out of memory on the GPU; take shorter contexts, a smaller model, or --device cpu")
    finally:
        torch.set_num_threads(threads)


def _load(
    edge: str, cloud: str, weights: Literal["pretrained", "random"], device: Device, dtype: Dtype, scouts: bool
) -> "tuple[LoadedModel, LoadedModel]":
    """Load both models. Raises ModelError, if possible before any weights are loaded."""
    from models.hf.loading import ModelSpec, check_pair, default_device, default_dtype, load_model

    where = default_device() if device == "auto" else device
    exact = default_dtype(where) if dtype == "auto" else dtype
    specs = ModelSpec(edge, weights, exact, where), ModelSpec(cloud, weights, exact, where)
    check_pair(*specs, scouts)
    first, second = map(load_model, specs)
    if weights == "pretrained":
        return first, second
    return replace(first, tokenizer=None), replace(second, tokenizer=None)  # random examples are token ids
