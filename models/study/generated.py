"""Generated examples: needles in a haystack, of any length; seeded, and the same for models but for their length."""

from collections.abc import Callable

import numpy as np

from models.datasets import Example

SUBJECTS = (
    *("The gardener", "A teacher", "The old captain", "My neighbour", "The baker", "A young doctor"),
    *("The librarian", "A painter"),
)
VERBS = ("watched", "described", "remembered", "sketched", "admired", "counted", "ignored", "discussed")
OBJECTS = (
    *("the rain", "a stone bridge", "the harbour", "two sparrows", "the market", "an empty chair", "the river"),
    "a long letter",
)
TIMES = (
    *("in the morning", "after lunch", "before the storm", "on the way home", "all afternoon", "without a word"),
    "in spring",
)
CITIES = (
    *("Lisbon", "Oslo", "Cairo", "Quito", "Dublin", "Hanoi", "Lagos", "Prague"),
    *("Lima", "Athens", "Boston", "Delhi", "Geneva", "Havana", "Kyoto", "Madrid"),
)
KEYS = 8  # sentences with a number, in `multi_key`
ASKED = 2  # of them, by each of its questions
QUESTIONS = 4  # about each context, in `multi_key`

Count = Callable[[str], int]


def examples_of(task: str, count: int, tokens: int, count_tokens: Count, seed: int = 0) -> list[Example]:
    """Examples of `needle` or `multi_key`.

    Args:
        tokens: about how many a context has.
        count_tokens: of a text, by the model that is studied.

    Raises:
        ValueError: too few tokens for what is hidden.
    """
    keys, questions = (1, 1) if task == "needle" else (KEYS, QUESTIONS)
    sentences = _sentences(tokens, keys, count_tokens)
    found: list[Example] = []
    for number in range(-(-count // questions)):
        rng = np.random.default_rng([seed, tokens, number])
        found += _context(rng, f"{task}-{tokens}-{number}", sentences, keys, questions)
    return found[:count]


def _sentences(tokens: int, keys: int, count_tokens: Count) -> int:
    """How many plain sentences make a context of that length."""
    rng = np.random.default_rng(0)
    each = count_tokens(" ".join(_plain(rng) for _ in range(200))) / 200
    hidden = keys * count_tokens(_hidden("Lisbon", "1234567") + " ")
    sentences = round((tokens - hidden) / each)
    if sentences < 2:
        raise ValueError(
            f"a context of {tokens} tokens is too short for {keys} hidden sentences; {hidden + 40} will do"
        )
    return sentences


def _context(rng: np.random.Generator, name: str, sentences: int, keys: int, questions: int) -> list[Example]:
    text = [_plain(rng) for _ in range(sentences)]
    cities = [CITIES[i] for i in rng.permutation(len(CITIES))[:keys]]
    numbers = [str(n) for n in rng.choice(np.arange(1_000_000, 9_999_999), size=keys, replace=False)]
    for city, value in zip(cities, numbers, strict=True):
        text.insert(int(rng.integers(len(text) + 1)), _hidden(city, value))
    context, found = " ".join(text), []
    for question in range(questions):
        asked = [int(i) for i in rng.permutation(keys)[: min(keys, ASKED)]]
        places = " and of ".join(cities[i] for i in asked)
        what = "What is the special number of" if len(asked) == 1 else "What are the special numbers of"
        answers = tuple(numbers[i] for i in asked)
        found.append(Example(context, f"{what} {places}?", answers, f"{name}-{question}"))
    return found


def _plain(rng: np.random.Generator) -> str:
    subject, verb, what, when = (part[rng.integers(len(part))] for part in (SUBJECTS, VERBS, OBJECTS, TIMES))
    return f"{subject} {verb} {what} {when}."


def _hidden(city: str, number: str) -> str:
    return f"The special number of {city} is {number}."
