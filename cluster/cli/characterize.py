"""`scout characterize` and `scout claims`: studies of real models, and what they say about published claims."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.console import EXIT_INTERRUPTED, Json, ResultStream, console, fail, progress
from cluster.cli.models import Device, Dtype, NewTokens, real_models

if TYPE_CHECKING:
    from cluster.experiments.characterize import Study
    from models.study.cases import Case

SELECTIONS = "q2c,q2c_pooled,snapkv,h2o,tova,streaming,random"
QUANTIZERS = "int8,int4,int4_kivi"

Names = Annotated[str, typer.Option(help="Separated by commas; see docs/quality.md.")]


def characterize(
    model: Annotated[str, typer.Option(help="The model: family/tiny, a hub name, or a folder.")],
    out: Annotated[Path | None, typer.Option(help="The study's folder; gone on with, if it is there.")] = None,
    cloud_model: Annotated[
        str | None, typer.Option(help="A second model, which answers from the first one's positions.")
    ] = None,
    task: Annotated[str, typer.Option(help="qa, squad_v2, needle, multi_key, choice or summary.")] = "qa",
    examples: Annotated[
        str | None, typer.Option(help="family, a file (.json, .jsonl) or owner/name on the hub; default: family.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Examples (of each length of generated contexts).")] = 100,
    contexts: Annotated[str, typer.Option(help="Lengths of generated contexts in tokens, by comma.")] = "1024",
    selections: Names = SELECTIONS,
    quantizers: Names = QUANTIZERS,
    retentions: Annotated[str, typer.Option(help="Shares of the context to keep, by comma.")] = "0.5,0.25",
    ways: Annotated[str, typer.Option(help="How positions are dropped: prune, prefill_kept, delete.")] = "prune",
    modes: Annotated[str | None, typer.Option(help="More modes, such as q2c_pooled@0.5+int8, by comma.")] = None,
    device: Annotated[Device, typer.Option(help="auto: a GPU if there is one.")] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="auto: bfloat16 on a GPU, float32 on a CPU.")] = "auto",
    max_new_tokens: NewTokens = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the examples that are drawn or made.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes on Ray; 0: this one, without Ray.")] = 0,
    num_gpus: Annotated[float, typer.Option(min=0, help="Each worker's share of a GPU.")] = 0.0,
    threads: Annotated[int, typer.Option(min=1, help="Cores of this process.")] = 1,
    profile: Annotated[
        Path | None, typer.Option(help="A profile file to write from the study, as calibrate's.")
    ] = None,
    note: Annotated[str, typer.Option(help="For the report's readers, such as where the weights came from.")] = "",
    show: Annotated[int, typer.Option(min=0, help="Print so many prompts as the model gets them, and end.")] = 0,
    as_json: Json = False,
) -> None:
    """Study real models: what selections and quantizers cost in answers, example by example, with statistics."""
    result = ResultStream(as_json)
    with real_models(threads):
        from cluster.experiments.calibrate import check_profile_file
        from cluster.experiments.characterize import Study, run_study
        from models.tasks import task_of

        asked, called = task_of(task), Path(model).name
        if profile is not None:
            check_profile_file(profile, called)
        if examples is not None and asked.generated:
            fail(f"--examples {examples}: the examples of {task} are made here; leave it out")
        cases = _cases(selections, retentions, quantizers, ways, modes, cloud_model is not None)
        lengths = _numbers("--contexts", contexts)
        folder = out or Path("runs") / f"study-{Path(model).name}-{task}"
        edge, cloud = _models(model, cloud_model, device, dtype)
        new = max_new_tokens or asked.answer_tokens
        study = Study(edge, cloud, asked, examples or "family", samples, lengths, cases, new, seed, note)
        if show:
            _show(study, show)
            return
        try:
            run_study(study, folder, progress, workers, num_gpus)
        except KeyboardInterrupt:
            _report(folder, result)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        _report(folder, result)
        if profile is not None:
            _write_profile(study, folder, profile, called)


def claims(
    studies: Annotated[list[Path], typer.Argument(help="Folders of studies by scout characterize.")],
    out: Annotated[Path | None, typer.Option(help="A Markdown file to write; default: standard output.")] = None,
    as_json: Json = False,
) -> None:
    """Judge published claims by studies of real models: each holds, doesn't, or can't be told."""
    from reports.claims import claims_page, judged, shipped_claims
    from reports.runs import ReportError
    from reports.study import read_study

    result = ResultStream(as_json)
    known = shipped_claims()
    try:
        found = [read_study(folder) for folder in studies]
        page = claims_page(found, known)
        if out is not None:
            out.write_text(page, encoding="utf-8")
    except ReportError as error:
        fail(error)
    except OSError as error:
        fail(f"{out} can't be written: {error.strerror}")
    document = [
        {"study": str(study.folder), "claim": claim.id, "f1": _finite(asdict(judged(claim, known, study, "f1")))}
        | {"nll": _finite(asdict(judged(claim, known, study, "nll")))}
        for study in found
        for claim in known.claims
    ]
    result.write(document, lambda: print(page) if out is None else progress(f"written: {out}"))


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {key: None if value != value else value for key, value in values.items()}


def _cases(
    selections: str, retentions: str, quantizers: str, ways: str, modes: str | None, cloud: bool
) -> "list[Case]":
    """Raises ValueError for what isn't known."""
    from kvcache.modes import parse_modes
    from models.study.cases import WAYS, cases_of

    shares = [float(share) for share in _numbers("--retentions", retentions, float)]
    joint = []
    for mode in parse_modes(modes) if modes else []:
        if not mode.is_cache or mode.quantizer is None or mode.selection is None:
            raise ValueError(f"--modes {mode}: a selection with its retention and a quantizer, such as q2c@0.5+int8")
        joint.append((mode.selection, mode.retention, mode.quantizer))
    for way in _names(ways):
        if way not in WAYS:
            raise ValueError(f"no way {way!r}; there are {', '.join(WAYS)}")
    chosen = [way for way in WAYS if way in _names(ways)]
    return cases_of(_names(selections), shares, _names(quantizers), chosen, cloud, joint)


def _models(model: str, cloud: str | None, device: Device, dtype: Dtype) -> tuple[Any, Any]:
    """Load one model or two. Raises ModelError, if possible before any weights are loaded."""
    from models.hf.loading import ModelSpec, check_pair, default_device, default_dtype, load_model

    where = default_device() if device == "auto" else device
    exact = default_dtype(where) if dtype == "auto" else dtype
    edge = ModelSpec(model, "pretrained", exact, where)
    if cloud is None:
        return load_model(edge), None
    other = ModelSpec(cloud, "pretrained", exact, where)
    check_pair(edge, other, scout=True)
    return load_model(edge), load_model(other)


def _write_profile(study: "Study", folder: Path, path: Path, called: str) -> None:
    from cluster.experiments.calibrate import provenance, write_profile
    from cluster.experiments.characterize import items_of, profile_from
    from reports.study import read_study

    items, _ = items_of(study, lambda line: None)
    found = profile_from(study, read_study(folder), [item.example for item in items], progress)
    write_profile(path, called, found, f"{provenance()}; {study.edge.spec.dtype}")
    progress(f"the profile: {called} in {path}")


def _show(study: "Study", count: int) -> None:
    """Print prompts exactly as the model gets them, with the sizes of their parts."""
    from cluster.experiments.characterize import items_of
    from models.hf.prompts import prompt_of

    items, _ = items_of(study, progress)
    for item in items[:count]:
        prompt = prompt_of(study.edge, item.example.context, item.example.question, study.task)
        console.rule(f"{item.example.name}: {prompt.head} + {prompt.context} + {prompt.query} tokens")
        console.print(prompt.text or " ".join(map(str, prompt.tokens)), highlight=False, soft_wrap=True)
        console.rule(f"reference: {' | '.join(item.example.answers) or 'none'}")


def _report(folder: Path, result: ResultStream) -> None:
    from reports.page import write_report
    from reports.runs import ReportError
    from reports.study import read_study, study_page

    try:
        study = read_study(folder)
        page = study_page(study)
        written = write_report(page, folder)
    except ReportError as error:
        fail(error)

    def tell() -> None:
        for section in page.sections:
            console.print(section.title, style="bold", highlight=False)
            for note in section.notes[1:]:
                console.print(note, highlight=False)
        console.print(f"the report: {written}", highlight=False)

    figures = {length: [_tree(asdict(f)) for f in each] for length, each in study.figures.items()}
    result.write({"facts": study.facts, "figures": figures}, tell)


def _tree(figures: dict[str, Any]) -> dict[str, Any]:
    return _finite({key: _finite(value) if isinstance(value, dict) else value for key, value in figures.items()})


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _numbers(option: str, text: str, kind: type = int) -> list[Any]:
    try:
        return [kind(part) for part in _names(text)]
    except ValueError:
        raise ValueError(f"{option} {text}: numbers by comma") from None
