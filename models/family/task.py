"""The family's task: passages of invented facts, and questions that they answer.

A passage says who keeps, hides, buys, ... which thing where, who is whose friend, teacher, ..., and who met whom. All
content words are invented and drawn anew for every passage, so an answer can only come from the context. Facts come as
near-duplicates: the same thing with two to four owners, things and places that share a word, several relations of one
person. Half the questions are two-hop ("Where does the friend of Rimo keep the wecon siban?").

Passages for training and for evaluation share no invented word and no seed.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

Split = Literal["train", "eval"]
Sentence = tuple[str, ...]

MIN_TOKENS, MAX_TOKENS = 64, 1000
TRAIN_WORDS, EVAL_WORDS = 1200, 300
SPLITS: dict[Split, int] = {"train": 1, "eval": 2}

VERBS = {"keeps": "keep", "hides": "hide", "buys": "buy", "sells": "sell", "finds": "find", "paints": "paint"}
RELATIONS = ("friend", "teacher", "neighbour", "doctor")
PREPOSITIONS = ("in", "near", "behind", "under")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
GRAMMAR = ("the", "of", "is", "met", "meet", "at", "on", "where", "when", "who", "does", "did")
MARKS = ("question", "answer", ".", ",", ":", "?")

CONSONANTS, VOWELS, ENDINGS = "bdfghklmnprstvwz", "aeiou", ("", "n", "r", "s", "l", "t")
STRIDE = 7919  # coprime to the number of spellings, so that neighbours in the list don't look alike


@dataclass(frozen=True)
class Question:
    """A question, its answer, and the sentences (by position in the passage) that the answer follows from."""

    words: Sentence
    answer: Sentence
    needs: tuple[int, ...]

    @property
    def text(self) -> str:
        return text_of(self.words)

    @property
    def answer_text(self) -> str:
        return " ".join(self.answer)


@dataclass(frozen=True)
class Passage:
    """Sentences in the order told, and questions on them."""

    sentences: tuple[Sentence, ...]
    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        return " ".join(map(text_of, self.sentences))


def text_of(sentence: Sentence) -> str:
    """A sentence as written: punctuation joined to its word, a capital at the start."""
    joined = " ".join(sentence).replace(" .", ".").replace(" ?", "?")
    return joined[0].upper() + joined[1:]


@cache
def lexicon(split: Split) -> tuple[str, ...]:
    """The invented words of a split, in lower case; the splits' words are disjoint."""
    grammar = {word.lower() for word in grammar_words()}
    found: dict[str, None] = {}
    number = 0
    while len(found) < TRAIN_WORDS + EVAL_WORDS:
        number += STRIDE
        word, rest = "", number
        for letters in (CONSONANTS, VOWELS, CONSONANTS, VOWELS, ENDINGS):
            rest, letter = divmod(rest, len(letters))
            word += letters[letter]
        if word not in grammar:
            found[word] = None
    words = tuple(found)
    return words[:TRAIN_WORDS] if split == "train" else words[TRAIN_WORDS:]


def grammar_words() -> list[str]:
    """Every word that isn't invented, punctuation included."""
    return [*GRAMMAR, *MARKS, *VERBS, *VERBS.values(), *RELATIONS, *PREPOSITIONS, *DAYS]


def example_rng(split: Split, seed: int, number: int) -> np.random.Generator:
    """The random generator of one passage, independent for each split, seed and number."""
    return np.random.default_rng([SPLITS[split], seed, number])


def make_passage(rng: np.random.Generator, split: Split, tokens: int, questions: int) -> Passage:
    """A passage of about `tokens` tokens, at most (a word or punctuation mark each), and up to that many questions.

    Raises:
        ValueError: `tokens` is too few for a passage or too many.
    """
    if not 40 <= tokens <= MAX_TOKENS:
        raise ValueError(f"a passage has 40 to {MAX_TOKENS} tokens, not {tokens}")
    return _Writer(rng, split, tokens).passage(questions)


def evaluation_passage(
    split: Split, seed: int, number: int, min_tokens: int = MIN_TOKENS, max_tokens: int = MAX_TOKENS
) -> Passage:
    """The passage of that number, with one question: lengths log-uniform, half the questions of two hops."""
    rng = example_rng(split, seed, number)
    tokens = int(np.exp(rng.uniform(np.log(min_tokens), np.log(max_tokens + 1))))
    return make_passage(rng, split, tokens, 1)


def query_words(question: Question) -> Sentence:
    """The query after the context in the prompt: `Question: ... Answer:`."""
    return ("question", ":", *question.words, "answer", ":")


class _Writer:
    """Draws facts until a passage is long enough, then asks about them."""

    def __init__(self, rng: np.random.Generator, split: Split, tokens: int) -> None:
        self._rng = rng
        words = lexicon(split)
        fresh = [words[i] for i in rng.permutation(len(words))]  # every word plays one part in a passage
        people, qualities, kinds, sites = 4 + tokens // 50, 2 + tokens // 300, 2 + tokens // 300, 4 + tokens // 40
        self._people = [fresh.pop().capitalize() for _ in range(people)]
        verbs = [list(VERBS)[i] for i in rng.permutation(len(VERBS))[: 2 + tokens // 400]]
        things = [fresh.pop() for _ in range(qualities)], [fresh.pop() for _ in range(kinds)]
        keys = [(verb, quality, kind) for verb in verbs for quality in things[0] for kind in things[1]]
        self._keys = [keys[i] for i in rng.permutation(len(keys))]
        firsts, seconds = [fresh.pop() for _ in range(sites)], [fresh.pop() for _ in range(sites)]
        self._places = [(firsts[i // sites], seconds[i % sites]) for i in rng.permutation(sites * sites)]

        self._sentences: list[Sentence] = []
        self._left = tokens
        self._owned: dict[tuple[str, Sentence], tuple[int, Sentence]] = {}  # (person, key) -> sentence, place
        self._related: dict[tuple[str, str], tuple[int, str]] = {}  # (relation, person) -> sentence, whom it names
        self._met: dict[tuple[str, str], tuple[int, Sentence, str]] = {}  # two people -> sentence, place, day
        self._write()

    def _write(self) -> None:
        while self._keys and self._left >= 44:
            owners = self._draw(2 + int(self._rng.integers(3)) if self._left >= 80 else 2)
            key = self._keys.pop()
            for owner in owners:
                self._own(owner, key)
            asker = self._draw(1)[0]
            relations = self._rng.permutation(len(RELATIONS))
            for number, owner in zip(relations, owners[:2], strict=False):
                self._relate(RELATIONS[number], asker, owner)
        for _ in range(self._left):  # not every attempt adds a new fact
            one, other = self._draw(2)
            if self._left >= 11 and self._rng.random() < 0.5:
                self._meet(one, other)
            elif self._left >= 7:
                self._relate(RELATIONS[self._rng.integers(len(RELATIONS))], one, other)

    def _draw(self, count: int) -> list[str]:
        """Different people."""
        return [self._people[i] for i in self._rng.choice(len(self._people), count, replace=False)]

    def _say(self, *words: str) -> int:
        self._sentences.append(words)
        self._left -= len(words)
        return len(self._sentences) - 1

    def _own(self, owner: str, key: Sentence) -> None:
        verb, quality, kind = key
        place = self._places.pop()
        preposition = PREPOSITIONS[self._rng.integers(len(PREPOSITIONS))]
        number = self._say(owner, verb, "the", quality, kind, preposition, "the", *place, ".")
        self._owned[owner, key] = number, place

    def _relate(self, relation: str, person: str, other: str) -> None:
        if person != other and (relation, person) not in self._related:
            number = self._say("the", relation, "of", person, "is", other, ".")
            self._related[relation, person] = number, other

    def _meet(self, one: str, other: str) -> None:
        if (one, other) not in self._met and (other, one) not in self._met:
            day, place = DAYS[self._rng.integers(len(DAYS))], self._places.pop()
            number = self._say(one, "met", other, "at", "the", *place, "on", day, ".")
            self._met[one, other] = number, place, day

    def passage(self, questions: int) -> Passage:
        order = self._rng.permutation(len(self._sentences))
        told_at = np.argsort(order)
        candidates = self._one_hop(), self._two_hop()
        asked = []
        for kind in self._rng.integers(2, size=questions):
            if candidates[kind]:
                words, answer, needs = candidates[kind].pop(int(self._rng.integers(len(candidates[kind]))))
                asked.append(Question(words, answer, tuple(int(told_at[n]) for n in needs)))
        return Passage(tuple(self._sentences[i] for i in order), tuple(asked))

    def _one_hop(self) -> list[tuple[Sentence, Sentence, tuple[int, ...]]]:
        found: list[tuple[Sentence, Sentence, tuple[int, ...]]] = []
        for (owner, (verb, *thing)), (number, place) in self._owned.items():
            found.append((("where", "does", owner, VERBS[verb], "the", *thing, "?"), place, (number,)))
        for (relation, person), (number, other) in self._related.items():
            found.append((("who", "is", "the", relation, "of", person, "?"), (other,), (number,)))
        for (one, other), (number, place, day) in self._met.items():
            found.append((("where", "did", one, "meet", other, "?"), place, (number,)))
            found.append((("when", "did", one, "meet", other, "?"), (day,), (number,)))
        return found

    def _two_hop(self) -> list[tuple[Sentence, Sentence, tuple[int, ...]]]:
        """Things have two owners or more, so the owner has to be found first; so has the person in the middle."""
        things_of, relations_of = defaultdict(list), defaultdict(list)
        for (owner, key), (number, place) in self._owned.items():
            things_of[owner].append((key, number, place))
        for (relation, person), (number, other) in self._related.items():
            relations_of[person].append((relation, number, other))
        found: list[tuple[Sentence, Sentence, tuple[int, ...]]] = []
        for (relation, person), (first, middle) in self._related.items():
            start = "the", relation, "of", person
            for (verb, *thing), second, place in things_of[middle]:
                found.append((("where", "does", *start, VERBS[verb], "the", *thing, "?"), place, (first, second)))
            for outer, second, other in relations_of[middle]:
                found.append((("who", "is", "the", outer, "of", *start, "?"), (other,), (first, second)))
        return found
