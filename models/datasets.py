"""Data sets: the family's, SQuAD, XQuAD, HotpotQA and JSONL files (multiple choice too), by path or by hub name."""

import hashlib
import importlib
import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from configs.reading import FileRefused, check_file, read_bytes
from models.family.task import MAX_TOKENS, MIN_TOKENS, Split, evaluation_passage

FAMILY: dict[str, Split] = {"family": "eval", "family/train": "train"}
MAX_FILE_BYTES = 2**27  # SQuAD's and HotpotQA's development files have 4 and 46 MB
MAX_LINE_BYTES = 2**22
MAX_LINES_FILE_BYTES = 2**33
MAX_EXAMPLES = 200_000
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # of choices
DEFAULT_COUNT = 500  # of the family, which is infinite


class DatasetError(ValueError):
    """Examples can't be loaded; the message names the source and the reason."""


@dataclass(frozen=True)
class Example:
    """A question about a context.

    Attributes:
        answers: the references; none for a question without an answer (see `load_examples`).
        name: that the data set gives it; may be empty or repeat (see `uniquely_named`).
    """

    context: str
    question: str
    answers: tuple[str, ...]
    name: str = field(default="", compare=False)


class _Text(BaseModel):
    text: str


class _SquadQuestion(BaseModel):
    question: str
    answers: list[_Text]
    id: str = ""


class _SquadParagraph(BaseModel):
    context: str
    qas: list[_SquadQuestion]


class _SquadArticle(BaseModel):
    paragraphs: list[_SquadParagraph]


class _Squad(BaseModel):
    data: list[_SquadArticle]

    def examples(self) -> Iterator[Example]:
        for article in self.data:
            for paragraph in article.paragraphs:
                for asked in paragraph.qas:
                    answers = [answer.text for answer in asked.answers]
                    yield _example(paragraph.context, asked.question, answers, asked.id)


class _HotpotQuestion(BaseModel):
    question: str
    answer: str
    context: list[tuple[str, list[str]]]  # title, sentences

    def example(self) -> Example:
        paragraphs = (f"{title}: {''.join(sentences)}" for title, sentences in self.context)
        return _example("\n".join(paragraphs), self.question, [self.answer])


class _Line(BaseModel):
    context: str
    question: str
    answers: list[str] = Field(min_length=1)
    id: str = ""

    def example(self) -> Example:
        return _example(self.context, self.question, self.answers, self.id)


class _Choices(BaseModel):
    """MMLU's form. Without a context, the question is what can be pruned, and the choices are what is asked."""

    question: str
    choices: list[str] = Field(min_length=2, max_length=len(LETTERS))
    answer: int | str
    context: str = ""
    id: str = ""

    def example(self) -> Example:
        right = self.answer if isinstance(self.answer, int) else LETTERS.find(self.answer.strip().upper() or "-")
        if not 0 <= right < len(self.choices):
            raise ValueError(f"answer {self.answer!r} is none of {len(self.choices)} choices")
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False))
        question = f"{self.question}\n{listed}" if self.context else listed
        return _example(self.context or self.question, question, [LETTERS[right]], self.id)


def _example(context: str, question: str, answers: list[str], name: str = "") -> Example:
    return Example(context, question, tuple(dict.fromkeys(answers)), name)


def load_examples(
    source: str,
    count: int | None = None,
    seed: int = 0,
    base_dir: Path | None = None,
    unanswerable: bool = False,
) -> list[Example]:
    """Load examples from a source; if it has more than `count`, a random sample of that size, by `seed`.

    Args:
        unanswerable: without it, questions without an answer (SQuAD v2's `is_impossible`) are left out.
        source: `family` (evaluation split) or `family/train`; a file relative to `base_dir` that ends in `.json` (in
            SQuAD's or HotpotQA's format) or `.jsonl` (an object a line: `context`, `question`, list `answers`; or
            `question`, list `choices`, `answer` by number or letter); or a name on the Hugging Face hub, as
            `rajpurkar/squad_v2` or `hotpotqa/hotpot_qa:distractor` (`:configuration`).

    Raises:
        DatasetError: the source doesn't exist, can't be read, is too large or has no example.
    """
    if count is not None and not 0 < count <= MAX_EXAMPLES:
        raise DatasetError(f"{source}: 1 to {MAX_EXAMPLES} examples can be asked for, not {count}")
    if source in FAMILY:
        return family_examples(FAMILY[source], count or DEFAULT_COUNT, seed)
    if source.endswith((".json", ".jsonl")):
        path = (base_dir or Path()) / source
        found = _from_lines(path) if path.suffix == ".jsonl" else _from_json(path)
    elif "/" in source:
        found = _from_hub(source)
    else:
        raise DatasetError(
            f"no data set {source!r}; there are {', '.join(FAMILY)}, files (.json, .jsonl) and owner/name on the hub"
        )
    wanted = (example for example in found if unanswerable or example.answers)
    examples = list(islice(wanted, MAX_EXAMPLES + 1))
    _check_contexts(source, examples)
    if not examples:
        raise DatasetError(f"{source} has no question with an answer")
    if len(examples) > MAX_EXAMPLES:
        raise DatasetError(f"{source} has more than {MAX_EXAMPLES} examples")
    if count is None or count >= len(examples):
        return examples
    return [examples[i] for i in np.random.default_rng(seed).permutation(len(examples))[:count]]


def uniquely_named(examples: Iterable[Example]) -> list[Example]:
    """The examples with names that differ: the place of one without, and beside a name that was there before.

    The first ones' names don't depend on how many follow.
    """
    seen: set[str] = set()
    found = []
    for place, example in enumerate(examples):
        name = example.name or f"{place}"
        while name in seen:
            name += f"#{place}"
        seen.add(name)
        found.append(replace(example, name=name))
    return found


def content_sha256(source: str) -> str:
    """Of a file's content, hexadecimal; empty for sources that aren't files. Raises OSError if it can't be read."""
    if not source.endswith((".json", ".jsonl")):
        return ""
    with Path(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_contexts(source: str, examples: list[Example]) -> None:
    for number, example in enumerate(examples, start=1):
        if not example.context.strip():
            raise DatasetError(f"{source}: the context of example {number} is empty")


def family_examples(
    split: Split, count: int, seed: int = 0, min_tokens: int = MIN_TOKENS, max_tokens: int = MAX_TOKENS
) -> list[Example]:
    """Examples of the family's task, one passage each, with contexts of `min_tokens` to `max_tokens`.

    Splits share no invented word; the first examples of a seed don't depend on `count`.
    """
    examples = []
    for number in range(count):
        passage = evaluation_passage(split, seed, number, min_tokens, max_tokens)
        question = passage.questions[0]
        examples.append(Example(passage.text, question.text, (question.answer_text,)))
    return examples


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} can't be read: {error.strerror}") from None
    except FileRefused as error:
        hint = "; take a part of it, as .jsonl" if "larger than" in error.reason else ""
        raise DatasetError(f"{path} can't be read: {error.reason}{hint}") from None


def _from_json(path: Path) -> Iterator[Example]:
    try:
        raw = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}:{error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of 5,000 digits
        raise DatasetError(f"{path} is not JSON: {error}") from None
    try:
        if isinstance(raw, dict):
            return _Squad.model_validate(raw).examples()
        return (asked.example() for asked in TypeAdapter(list[_HotpotQuestion]).validate_python(raw))
    except ValidationError as error:
        raise DatasetError(f"{path} is neither in SQuAD's nor in HotpotQA's format: {_first(error)}") from None


def _from_lines(path: Path) -> Iterator[Example]:
    try:
        check_file(path, MAX_LINES_FILE_BYTES)
        with path.open("rb") as file:
            if file.read(len(BOM_UTF8)) != BOM_UTF8:
                file.seek(0)
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise DatasetError(f"{path}:{number}: a line of more than {MAX_LINE_BYTES >> 20} MiB")
                if line.strip():
                    yield _of_line(line, f"{path}:{number}")
    except FileRefused as error:
        raise DatasetError(f"{path} can't be read: {error.reason}") from None
    except OSError as error:
        raise DatasetError(f"{path} can't be read: {error.strerror}") from None


def _of_line(line: bytes, where: str) -> Example:
    kind: type[_Line | _Choices] = _Choices if b'"choices"' in line and b'"answers"' not in line else _Line
    try:
        example = kind.model_validate_json(line).example()
    except ValidationError as error:
        raise DatasetError(f"{where}: {_first(error)}") from None
    except ValueError as error:
        raise DatasetError(f"{where}: {error}") from None
    if not example.context.strip():
        raise DatasetError(f"{where}: context: is empty")
    return example


def _from_hub(source: str) -> Iterator[Example]:
    """The validation split of a data set on the hub, rows in SQuAD's or HotpotQA's columns."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise DatasetError(
            f"{source}: data sets of the hub need the library `datasets` (pip install datasets); files don't"
        ) from None
    name, _, configuration = source.partition(":")
    try:
        rows = datasets.load_dataset(name, configuration or None, split="validation", streaming=True)
    except Exception as error:  # networks and third-party code can raise anything
        raise DatasetError(f"{source} can't be loaded from the hub: {' '.join(str(error).split())[:300]}") from None
    return (example for number, row in enumerate(rows) for example in _of_row(row, f"{source}, row {number}"))


def _of_row(row: dict[str, Any], where: str) -> Iterator[Example]:
    try:
        if isinstance(row.get("context"), dict):  # HotpotQA's columns of lists
            paragraphs = zip(row["context"]["title"], row["context"]["sentences"], strict=True)
            yield _HotpotQuestion.model_validate({**row, "context": list(paragraphs)}).example()
        elif "choices" in row:
            yield _Choices.model_validate(row).example()
        else:
            answers = row["answers"]["text"] if isinstance(row["answers"], dict) else row["answers"]
            example = _Line.model_validate({**row, "answers": list(answers) or [""]}).example()
            yield example if answers else replace(example, answers=())
    except (KeyError, TypeError, ValueError) as error:
        what = _first(error) if isinstance(error, ValidationError) else f"no {error}"
        raise DatasetError(f"{where}: neither SQuAD's columns nor HotpotQA's ({what})") from None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
