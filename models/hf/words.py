"""Conversion of text to tokens and back, identical on edge and cloud, so that positions mean the same to both."""

from collections.abc import Sequence

import numpy as np

from models.datasets import Example
from models.hf.loading import LoadedModel

QUERY = "\nQuestion: {question}\nAnswer:"


def context_tokens(loaded: LoadedModel, context: str) -> list[int]:
    """Tokenize a context. Raises ValueError if the model has no tokenizer and the text isn't token ids."""
    return _tokens(loaded, context)


def query_tokens(loaded: LoadedModel, question: str) -> list[int]:
    """Tokenize the query: the question in the format that the small family was trained on. Raises as above."""
    return _tokens(loaded, question if loaded.tokenizer is None else QUERY.format(question=question))


def text_of(loaded: LoadedModel, tokens: Sequence[int]) -> str:
    """The text of an answer."""
    if loaded.tokenizer is None:
        return " ".join(map(str, tokens))
    return str(loaded.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def random_examples(
    count: int, context: int, query: int = 32, seed: int = 0, vocabulary: int = 32_000
) -> list[Example]:
    """Examples for models without words (random weights): texts are token ids, and no answer is right."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(map(str, rng.integers(vocabulary, size=n))) for _ in range(count) for n in (context, query)]
    return [Example(texts[i], texts[i + 1], ("",)) for i in range(0, 2 * count, 2)]


def _tokens(loaded: LoadedModel, text: str) -> list[int]:
    if loaded.tokenizer is not None:
        tokens = [int(token) for token in loaded.tokenizer.encode(text, add_special_tokens=False)]
        loaded.check_tokens(tokens)  # a tokenizer can be another model's
        return tokens
    try:
        tokens = [int(word) for word in text.split()]
    except ValueError:
        raise ValueError(f"{loaded.spec.name} has no tokenizer: its texts are numbers, one a token") from None
    loaded.check_tokens(tokens)
    return tokens
