"""Prompts as models expect them, identical on edge and cloud, so that positions mean the same to both.

A prompt is a head (beginning of sequence, chat template, instruction), the context, and the query (the question, and
the template's invitation to answer). All of it is tokenized as one text; the context's tokens are those that lie in it
by their offsets. Head and query are never pruned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from models.datasets import Example
from models.hf.architecture import ModelError
from models.hf.loading import LoadedModel
from models.tasks import QA, Task

MARK = "\ue000context\ue001"  # stands for the context while a template is filled in


@dataclass(frozen=True, eq=False, slots=True)
class Prompt:
    """A prompt in tokens.

    Attributes:
        tokens: head, context and query.
        head, context: tokens of each; the query is the rest.
        text: what was tokenized; empty for models without a tokenizer.
        offsets: of each token of the context, its first character in the context and the one after its last.
    """

    tokens: tuple[int, ...]
    head: int
    context: int
    text: str = ""
    offsets: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, context: Sequence[int], query: Sequence[int], head: Sequence[int] = ()) -> "Prompt":
        """A prompt of these tokens."""
        return cls((*head, *context, *query), len(head), len(context))

    @property
    def query(self) -> int:
        return len(self.tokens) - self.head - self.context

    @property
    def last_token(self) -> int:
        """The token that a cache never holds: decoding begins by feeding it."""
        return self.tokens[-1]

    def positions(self, kept_context: Tensor | None = None) -> Tensor:
        """Positions of a cache of this prompt without its last token: int64, ascending, on the CPU.

        Args:
            kept_context: int64, ascending, counted from the context's first token; None for all.

        Raises:
            ValueError: a position is outside the context.
        """
        last = len(self.tokens) - 1
        if kept_context is None:
            return torch.arange(last)
        if len(kept_context) and not 0 <= int(kept_context.min()) <= int(kept_context.max()) < self.context:
            raise ValueError(f"positions outside the context of {self.context}")
        kept = kept_context.cpu() + self.head
        kept = kept[kept < last]  # without a query, the context's last token is fed
        return torch.cat(
            (torch.arange(min(self.head, last)), kept, torch.arange(min(self.head + self.context, last), last))
        )

    def places_of(self, text: str, context: str) -> list[range]:
        """Where a text stands in the context, in tokens of the context: each occurrence's, whole tokens or parts."""
        found, at = [], context.find(text) if text else -1
        while at >= 0:
            end = at + len(text)
            inside = [i for i, (first, after) in enumerate(self.offsets) if first < end and after > at]
            if inside:
                found.append(range(inside[0], inside[-1] + 1))
            at = context.find(text, at + 1)
        return found


def prompt_of(loaded: LoadedModel, context: str, question: str, task: Task = QA) -> Prompt:
    """The prompt of a question about a context.

    Raises:
        ValueError: a model without a tokenizer, whose texts aren't token ids; or tokens that the model doesn't know.
        ModelError: its chat template can't be used.
    """
    if loaded.tokenizer is None:
        return Prompt.of(_ids(loaded, context), _ids(loaded, question))
    return _tokenized(loaded, context, question, task)


def filled_in(tokenizer: PreTrainedTokenizerFast, question: str, task: Task) -> str:
    """The prompt's text with MARK for the context. Raises ModelError if the chat template fails."""
    if tokenizer.chat_template is None:
        return task.plain.format(context=MARK, question=question)
    message = {"role": "user", "content": task.chat.format(context=MARK, question=question)}
    try:
        text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the model's maker
        raise ModelError(f"the chat template fails: {' '.join(str(error).split())[:200]}") from None
    if str(text).count(MARK) != 1:
        raise ModelError("the chat template doesn't show a user's message as it is")
    return str(text)


def _tokenized(loaded: LoadedModel, context: str, question: str, task: Task) -> Prompt:
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    before, after = filled_in(tokenizer, question, task).split(MARK)
    begin, end = len(before), len(before) + len(context)
    text = f"{before}{context}{after}"
    made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens = [int(token) for token in made["input_ids"]]
    loaded.check_tokens(tokens)  # a tokenizer can be another model's
    offsets = [(int(first), int(last)) for first, last in made["offset_mapping"]]
    inside = [i for i, (first, last) in enumerate(offsets) if begin <= first < last <= end]
    start = beginning(tokenizer) if tokenizer.chat_template is None else ()  # templates write their own
    if not inside:
        return Prompt((*start, *tokens), len(start), 0, text)
    first, past = inside[0], inside[-1] + 1
    within = tuple((a - begin, b - begin) for a, b in offsets[first:past])
    return Prompt((*start, *tokens), len(start) + first, past - first, text, within)


@lru_cache(maxsize=16)
def beginning(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The token that this model's texts begin with, if they do (as those of Llama 3 and Mistral)."""
    made = tokenizer("a")["input_ids"]
    first = tokenizer.bos_token_id
    return (int(first),) if isinstance(first, int) and len(made) > 1 and made[0] == first else ()


def reference_tokens(loaded: LoadedModel, prompt: Prompt, answer: str) -> tuple[int, ...]:
    """A reference answer's tokens as they follow the prompt; at least one.

    Raises:
        ValueError: the answer has no tokens, or unknown ones.
    """
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        tokens = _ids(loaded, answer)
    else:
        said = answer if tokenizer.chat_template is not None else f" {answer}"
        alone = [int(t) for t in tokenizer(said, add_special_tokens=False)["input_ids"]]
        joint = [int(t) for t in tokenizer(prompt.text + said, add_special_tokens=False, verbose=False)["input_ids"]]
        asked = prompt.tokens[len(prompt.tokens) - (len(joint) - len(alone)) :] if len(joint) > len(alone) else ()
        tokens = joint[len(asked) :] if asked and tuple(joint[: len(asked)]) == asked else alone
    loaded.check_tokens(tokens)
    if not tokens:
        raise ValueError(f"an answer without tokens: {answer!r}")
    return tuple(tokens)


def text_of(loaded: LoadedModel, tokens: Sequence[int], task: Task = QA) -> str:
    """The text of an answer; of one line, if the task wants one."""
    if loaded.tokenizer is None:
        return " ".join(map(str, tokens))
    text = str(loaded.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
    return text.partition("\n")[0].strip() if task.one_line else text


def random_examples(
    count: int, context: int, query: int = 32, seed: int = 0, vocabulary: int = 32_000
) -> list[Example]:
    """Examples for models without words (random weights): texts are token ids, and no answer is right."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(map(str, rng.integers(vocabulary, size=n))) for _ in range(count) for n in (context, query)]
    return [Example(texts[i], texts[i + 1], ("",)) for i in range(0, 2 * count, 2)]


def _ids(loaded: LoadedModel, text: str) -> list[int]:
    try:
        tokens = [int(word) for word in text.split()]
    except ValueError:
        raise ValueError(f"{loaded.spec.name} has no tokenizer: its texts are numbers, one a token") from None
    loaded.check_tokens(tokens)
    return tokens
