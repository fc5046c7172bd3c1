"""`scout characterize`: a study of real models, example by example, resumable."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.experiments.calibrate import PROBED, Profile, basis_of, profile_of
from kvcache.modes import LOCAL, PROMPT, SCOUT_SELECTION, parse_mode
from models.datasets import FAMILY, Example, content_sha256, load_examples, uniquely_named
from models.hf.loading import LoadedModel, ModelSpec
from models.hf.measure import fitting, measure
from models.hf.prompts import prompt_of
from models.study.asking import Asker, Item
from models.study.cases import FULL, Case, needs_plan
from models.study.generated import examples_of
from models.study.plans import FoundPlan, find_joint_plan
from models.study.rows import Outcome, Store
from models.tasks import Task
from reports import files
from reports.machine import describe_machine
from reports.schema import DocumentUnreadable, StudyFacts
from reports.study import StudyResults

Progress = Callable[[str], None]
GROUP = 8  # examples of one context that are asked about together at most: what is lost when a study is killed
TELL_S = 5.0
TIMED = 8  # examples that a profile's stage times are medians of
SAME = ("fingerprints", "task", "examples", "examples_sha256", "seed", "dtype", "max_new_tokens")
"""Of a study that is gone on with; samples, lengths and cases may grow."""


class StudyError(ValueError):
    """A study can't be begun or gone on with; the message says why."""


@dataclass(frozen=True, eq=False)
class Study:
    """What is studied.

    Attributes:
        edge, cloud: the models; the cloud's may be missing.
        source: of examples (see `load_examples`); not used for generated tasks.
        samples: how many examples, of each length.
        lengths: of generated contexts, in tokens.
        note: for the report's readers.
    """

    edge: LoadedModel
    cloud: LoadedModel | None
    task: Task
    source: str
    samples: int
    lengths: Sequence[int]
    cases: Sequence[Case]
    max_new_tokens: int
    seed: int = 0
    note: str = ""

    @property
    def models(self) -> list[LoadedModel]:
        return [model for model in (self.edge, self.cloud) if model is not None]

    def facts(self, left_out: list[str]) -> StudyFacts:
        spec = self.edge.spec
        return StudyFacts(
            **describe_machine().model_dump(),
            model=spec.name,
            cloud_model=None if self.cloud is None else self.cloud.spec.name,
            fingerprints=[model.fingerprint.hex() for model in self.models],
            task=self.task.name,
            measure=self.task.measure,
            examples="generated" if self.task.generated else Path(self.source).name,
            examples_sha256="" if self.task.generated else content_sha256(self.source),
            samples=self.samples,
            lengths=list(self.lengths) if self.task.generated else [],
            seed=self.seed,
            dtype=spec.dtype,
            device=spec.device,
            max_new_tokens=self.max_new_tokens,
            left_out=left_out,
            note=self.note,
        )


def items_of(study: Study, progress: Progress) -> tuple[list[Item], list[Example]]:
    """The examples to ask about, those of one context together, and others for a plan.

    Whole contexts are drawn by the seed, so that their questions share a prefill; a study of more samples begins with
    those of a smaller one. Examples that a model can't take are named and left out.

    Raises:
        DatasetError: they can't be had.
        ValueError: none is left, or lengths that nothing can be hidden in.
    """
    if study.task.generated:
        found, others = _generated(study)
    else:
        found, others = _given(study)
    asked, new = [example for _, example in found], study.max_new_tokens
    fit = fitting(asked, study.task, new, *study.models, progress=progress, references=True)
    kept = {id(example) for example in fit}
    numbers: dict[int, dict[str, int]] = {}  # by length, since lengths may be added
    items = []
    for (length, example), named in zip(found, uniquely_named(asked), strict=True):
        if id(example) in kept:
            contexts = numbers.setdefault(length, {})
            number = contexts.setdefault(example.context, len(contexts))
            items.append(Item(named, number, length, tuple(study.cases)))
    return items, others or fit[:PROBED]


def _generated(study: Study) -> tuple[list[tuple[int, Example]], list[Example]]:
    def count(text: str) -> int:
        return prompt_of(study.edge, text, "?", study.task).context

    found: list[tuple[int, Example]] = []
    for length in study.lengths:
        made = examples_of(study.task.name, study.samples, length, count, study.seed)
        found += [(length, example) for example in made]
    return found, examples_of(study.task.name, PROBED, min(study.lengths), count, study.seed + 1)


def _given(study: Study) -> tuple[list[tuple[int, Example]], list[Example]]:
    if study.source in FAMILY:  # as many as anyone asks for, one on each context
        found = load_examples(study.source, study.samples, study.seed)
        return [(0, example) for example in found], load_examples("family/train", PROBED)
    every = _by_context(load_examples(study.source, unanswerable=study.task.unanswerable), study.seed)
    return [(0, example) for example in every[: study.samples]], every[study.samples :][:PROBED]


def _by_context(examples: Sequence[Example], seed: int) -> list[Example]:
    """All examples, contexts in an order that is drawn."""
    contexts: dict[str, list[Example]] = {}
    for example in examples:
        contexts.setdefault(example.context, []).append(example)
    groups = list(contexts.values())
    return [example for i in np.random.default_rng(seed).permutation(len(groups)) for example in groups[i]]


def run_study(
    study: Study,
    out: Path,
    progress: Progress,
    workers: int = 0,
    gpus: float = 0.0,
) -> StudyFacts:
    """Ask what the folder doesn't have yet, and keep it there.

    The folder says `partial` from the start, so that a study which is interrupted, or killed, can be gone on with.

    Args:
        out: the study's folder; new, or of a study with the same models, task, examples and seed.
        workers: Ray actors; 0: in this process, without Ray. gpus: each actor's share of a GPU.

    Raises:
        StudyError: the folder is another study's.
        DatasetError, ValueError: no examples.
        KeyboardInterrupt: after what was measured is kept.
    """
    left_out: list[str] = []

    def tell(line: str) -> None:
        if line.startswith("left out: "):
            left_out.append(line.removeprefix("left out: "))
        progress(line)

    items, others = items_of(study, tell)
    facts = _begun(study, out, left_out)
    out.mkdir(parents=True, exist_ok=True)
    facts.write(out / files.STUDY)  # before any outcome: shards alone are no study that can be gone on with
    store = Store(out)
    done = store.done()
    groups = _groups(items, done)
    total = sum(len(item.cases) for item in items)
    progress(
        f"{total:,} outcomes: {len(items):,} examples, {len(study.cases)} cases; {total - _left(groups):,} are there"
    )
    begun = time.monotonic()
    before = facts.elapsed_s
    try:
        plan = _plan(study, facts, others, out, progress) if groups and needs_plan(study.cases) else None
        asking = _here(study, plan, groups) if workers < 1 else _over_ray(study, plan, groups, workers, gpus)
        _keep(asking, store, _left(groups), progress)
        facts.state = "complete"
    finally:
        store.finish(out / files.STUDY_RESULTS)
        facts.elapsed_s = round(before + time.monotonic() - begun, 1)
        facts.outcomes = len(store.done())
        facts.write(out / files.STUDY)
    return facts


def profile_from(study: Study, results: StudyResults, examples: Sequence[Example], progress: Progress) -> Profile:
    """A profile of the studied models: stage times of a few examples, one request at a time, and the study's qualities.

    Its modes are those of the study that a scenario can name; `local` has the quality of the whole cache.
    """
    by_mode = {LOCAL: FULL}
    for case in study.cases:
        if case.side == "edge" and case.way == "prune":
            by_mode[parse_mode(case.name)] = case.name
        elif case.name == "prompt":
            by_mode[PROMPT] = case.name
        elif case.scout and case.selection == SCOUT_SELECTION:
            by_mode[parse_mode(f"scout@{case.retention!r}")] = case.name
    plan = None if results.facts.plan is None else tuple(results.facts.plan)
    timed = examples[:TIMED]
    cloud = study.cloud or study.edge
    measured = measure(timed, study.edge, cloud, list(by_mode), study.max_new_tokens, plan, progress, task=study.task)
    length = min(results.figures)
    basis = basis_of(study.task.measure, results.examples, f"{results.facts.examples} ({study.task.name})")
    profile = profile_of(measured, basis, plan)
    for mode, case_name in by_mode.items():
        found, entry = results.find(case_name, length), profile["modes"][str(mode)]
        assert found is not None
        entry["quality"] = round(found.f1.mean, 1)
        entry["quality_interval"] = [round(found.f1.low, 1), round(found.f1.high, 1)]
    return profile


def _begun(study: Study, out: Path, left_out: list[str]) -> StudyFacts:
    facts, path = study.facts(left_out), out / files.STUDY
    try:
        known = StudyFacts.read(path)
    except FileNotFoundError:
        if out.exists() and any(out.iterdir()):
            raise StudyError(f"{out} isn't empty, and no study: it has no {files.STUDY}") from None
        return facts
    except (OSError, DocumentUnreadable) as error:
        raise StudyError(f"{path} can't be read: {error}") from None
    for key in SAME:
        if getattr(known, key) != getattr(facts, key):
            was, now = getattr(known, key), getattr(facts, key)
            raise StudyError(f"{out} is a study with other {key} ({was}, not {now}); take another folder")
    kept = {key: getattr(known, key) for key in ("plan", "plan_rise", "plan_held_out", "elapsed_s")}
    return facts.model_copy(update=kept | {"note": facts.note or known.note})


def _plan(study: Study, facts: StudyFacts, others: Sequence[Example], out: Path, progress: Progress) -> tuple[str, ...]:
    """The folder's plan for `mixed_int4`; found, if it has none."""
    if facts.plan is None:
        progress(f"finding a plan of layers for mixed_int4, on {len(others)} other examples")
        fit = fitting(others, study.task, study.max_new_tokens, study.edge)
        found: FoundPlan = find_joint_plan(study.edge, fit, study.task, study.max_new_tokens)
        facts.plan, facts.plan_rise, facts.plan_held_out = list(found.plan), found.rise, found.held_out
        facts.write(out / files.STUDY)
    return tuple(facts.plan or ())


def _groups(items: Sequence[Item], done: set[tuple[str, str]]) -> list[list[Item]]:
    """What is missing: examples of one context and the same missing cases together."""
    found: list[list[Item]] = []
    for item in items:
        cases = tuple(case for case in item.cases if (item.example.name, case.name) not in done)
        if not cases:
            continue
        here = Item(item.example, item.context, item.length, cases)
        last = found[-1][0] if found and len(found[-1]) < GROUP else None
        if last is not None and (last.length, last.context, last.cases) == (item.length, item.context, cases):
            found[-1].append(here)
        else:
            found.append([here])
    return found


def _left(groups: Sequence[Sequence[Item]]) -> int:
    return sum(len(item.cases) for group in groups for item in group)


def _keep(asking: Iterator[list[Outcome]], store: Store, left: int, progress: Progress) -> None:
    begun = told = time.monotonic()
    done = 0
    for outcomes in asking:
        store.add(outcomes)
        done += len(outcomes)
        now = time.monotonic()
        if now - told >= TELL_S or done == left:
            rate = done / max(now - begun, 1e-9)
            progress(f"{done:,} of {left:,} outcomes, {rate:.1f}/s, {_span((left - done) / rate)} left")
            told = now


def _here(study: Study, plan: tuple[str, ...] | None, groups: Sequence[list[Item]]) -> Iterator[list[Outcome]]:
    asker = Asker(study.edge, study.cloud, study.task, study.max_new_tokens, plan)
    return (asker.ask(group) for group in groups)


def _over_ray(
    study: Study, plan: tuple[str, ...] | None, groups: Sequence[list[Item]], workers: int, gpus: float
) -> Iterator[list[Outcome]]:
    import ray

    from cluster.experiments.study_actor import AskerActor
    from cluster.live.placement import Spot
    from cluster.live.ray_session import ray_session

    specs: list[ModelSpec] = [model.spec for model in study.models]
    waiting = list(reversed(groups))
    with ray_session(None) as session:
        wanted = min(workers, len(groups))
        if wanted > session.cpus or wanted * gpus > session.gpus:
            raise StudyError(f"{wanted} workers don't fit: {session.cpus:g} CPUs and {session.gpus:g} GPUs are free")
        args = (specs, study.task.name, study.max_new_tokens, plan, gpus)
        idle = [session.start(AskerActor, Spot(1, gpus), *args) for _ in range(wanted)]
        at_work: dict[ray.ObjectRef, ray.actor.ActorHandle] = {}
        while waiting or at_work:
            while waiting and idle:
                actor = idle.pop()
                at_work[actor.ask.remote(waiting.pop())] = actor
            [ready], _ = ray.wait(list(at_work))
            idle.append(at_work.pop(ready))
            yield ray.get(ready)


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
