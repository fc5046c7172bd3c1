"""Tasks: what a prompt says, how long an answer may be, and how it is scored. Imports nothing heavy.

The prompt that a model gets is `models.hf.prompts.prompt_of`'s: a message in the model's own chat template where it has
one, else plain text to go on from. Every part of the project that asks a model something asks it that way.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from models.f1 import exact_match, rouge_l, token_f1

PLAIN = "{context}\nQuestion: {question}\nAnswer:"  # the small family was trained on it
NO_ANSWER = "unanswerable"


class Score(NamedTuple):
    """An answer's scores, both in [0, 1]."""

    f1: float
    exact: float


Scorer = Callable[[str, Sequence[str]], Score]


def squad_score(answer: str, references: Sequence[str]) -> Score:
    """Token F1 and exact match as `evaluate-v1.1.py` and `evaluate-v2.0.py` compute them: the best over references."""
    return Score(token_f1(answer, references), float(exact_match(answer, references)))


def squad_v2_score(answer: str, references: Sequence[str]) -> Score:
    """As `evaluate-v2.0.py`: the empty answer is right where there is none; a model says it in a word."""
    said = "" if answer.lower().strip(" .\"'").startswith(NO_ANSWER) else answer
    return squad_score(said, references)


def choice_score(answer: str, references: Sequence[str]) -> Score:
    """1 if the first letter that stands alone is the right one, as MMLU's evaluations take it."""
    found = re.search(r"\b([A-Z])\b", answer)
    right = float(found is not None and found[1] in references)
    return Score(right, right)


def recall_score(answer: str, references: Sequence[str]) -> Score:
    """RULER's `string_match_all`: the share of the references that stand in the answer; exact if that is all."""
    share = sum(reference.lower() in answer.lower() for reference in references) / len(references)
    return Score(share, float(share == 1.0))


def rouge_score(answer: str, references: Sequence[str]) -> Score:
    """ROUGE-L in place of F1; no summary is exact unless it is the reference."""
    return Score(max(rouge_l(answer, reference) for reference in references), float(exact_match(answer, references)))


def reference_of(answers: Sequence[str]) -> str:
    """What a model should say: the first reference, or that there is none."""
    return answers[0] if answers else NO_ANSWER


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        chat: the user's message, with `{context}` and `{question}`; plain: the text for models without chat template.
        answer_tokens: the longest answer, unless something else is asked for.
        one_line: whether a line's end ends the answer.
        score: of an answer against its references.
        measure: the name of what `Score.f1` is.
        unanswerable: whether questions without an answer belong to it; their reference is the empty text.
        generated: whether its examples are made here, of any length, and so need no file.
    """

    name: str
    chat: str
    answer_tokens: int
    plain: str = PLAIN
    one_line: bool = True
    score: Scorer = squad_score
    measure: str = "F1"
    unanswerable: bool = False
    generated: bool = False


_SHORT = "Read the text. Answer the question with a few words copied from it, without a sentence around them."
_AFTER = "\n\nText:\n{context}\n\nQuestion: {question}"

QA = Task("qa", _SHORT + _AFTER, 32)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        QA,
        Task(
            "squad_v2",
            f'{_SHORT} If the text has no answer, say "{NO_ANSWER}".{_AFTER}',
            32,
            score=squad_v2_score,
            unanswerable=True,
        ),
        Task("needle", _SHORT + _AFTER, 16, generated=True),
        Task(
            "multi_key",
            "Read the text. Answer with the numbers asked for and nothing else, separated by commas." + _AFTER,
            48,
            score=recall_score,
            measure="recall",
            generated=True,
        ),
        Task(
            "choice",
            "{context}\n\n{question}\n\nAnswer with the letter of the right choice and nothing else.",
            4,
            score=choice_score,
            measure="accuracy",
        ),
        Task(
            "summary",
            "Read the text.\n\nText:\n{context}\n\n{question}",
            128,
            one_line=False,
            score=rouge_score,
            measure="ROUGE-L",
        ),
    )
}


def task_of(name: str) -> Task:
    """The task of that name. Raises ValueError, which lists the tasks."""
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]
