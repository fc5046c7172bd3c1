"""Token F1 and exact match by SQuAD's official evaluation, and bootstrap intervals of their means."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """Lower case, then no punctuation, then no articles, then single spaces: the order of `evaluate-v2.0.py`."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(NO_PUNCTUATION)).split())


def token_f1(answer: str, references: Sequence[str]) -> float:
    """The best F1 of the answer's tokens against any reference, in [0, 1].

    If either has no tokens, it is 1 if both have none, else 0. Without references the question has no answer, and the
    reference is the empty string, as in SQuAD v2.
    """
    return max(_f1(normalise(answer).split(), normalise(reference).split()) for reference in references or ("",))


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Whether the answer equals a reference after normalisation."""
    return normalise(answer) in {normalise(reference) for reference in references or ("",)}


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference))


def mean_interval(
    scores: Sequence[float], rng: np.random.Generator, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Bootstrap interval (percentile) of the mean of scores; for a single score, or equal ones, that score twice.

    Raises:
        ValueError: there are no scores.
    """
    values = np.asarray(scores, dtype=float)
    if not values.size:
        raise ValueError("no scores, so no interval of their mean")
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap  # takes half a second to import, and scenarios import this file

    interval = bootstrap(
        (values,), np.mean, n_resamples=resamples, batch=100, confidence_level=confidence, method="percentile", rng=rng
    ).confidence_interval
    return float(interval.low), float(interval.high)


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L's F measure (Lin 2004), in [0, 1]: of the longest common subsequence of words, in lower case.

    Words are letters and digits, as the `rouge_score` package takes them; no stemming.
    """
    said, wanted = (re.findall(r"[a-z0-9]+", text.lower()) for text in (answer, reference))
    if not said or not wanted:
        return float(said == wanted)
    lengths = [0] * (len(wanted) + 1)
    for word in said:
        diagonal = 0
        for at, other in enumerate(wanted, start=1):
            above = lengths[at]
            lengths[at] = diagonal + 1 if word == other else max(above, lengths[at - 1])
            diagonal = above
    return 2 * lengths[-1] / (len(said) + len(wanted))
