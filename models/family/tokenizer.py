"""The family's tokenizer: one token a word or punctuation mark, case ignored; the same for all sizes."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.family import family_path
from models.family.task import Sentence, grammar_words, lexicon

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"


def vocabulary() -> dict[str, int]:
    """Token ids: special tokens, grammar, then invented words (those of the evaluation last)."""
    words = [PAD, END, UNKNOWN, *grammar_words(), *lexicon("train"), *lexicon("eval")]
    return {word: number for number, word in enumerate(dict.fromkeys(word.lower() for word in words))}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, as each size's folder has it."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=2048
    )


def load_tokenizer(size: str) -> PreTrainedTokenizerFast:
    """The tokenizer as a size's folder has it.

    `AutoTokenizer` won't do: whatever a Qwen2 model's folder says, transformers 5 puts Qwen2's own pre-tokenizer in,
    and hardly a word is known any more.

    Raises:
        ValueError: no such size.
    """
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(family_path(size))
    return tokenizer


def token_ids(words: Sentence, ids: dict[str, int]) -> list[int]:
    """Ids of words by `vocabulary()`: what the tokenizer makes of their text, quicker."""
    return [ids[word.lower()] for word in words]
