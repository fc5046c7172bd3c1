"""A small model family trained from scratch on one task, for use without downloads: see `card.md`."""

from pathlib import Path

EDGE, CLOUD = "tiny", "base"
SIZES = (EDGE, "small", CLOUD)


def family_path(size: str) -> Path:
    """The folder of a size, which `AutoModelForCausalLM` and `PreTrainedTokenizerFast` load (`AutoTokenizer`
    doesn't: see `models.family.tokenizer`).

    Raises:
        ValueError: no such size; the message lists the sizes.
    """
    if size not in SIZES:
        raise ValueError(f"the small family has no size {size!r}; there are {', '.join(SIZES)}")
    return Path(__file__).parent / size


__all__ = ["CLOUD", "EDGE", "SIZES", "family_path"]
