"""The sizes of the family: Qwen2's architecture, small."""

from dataclasses import dataclass

from transformers import Qwen2Config

from models.family import SIZES
from models.family.tokenizer import END, PAD, vocabulary

POSITIONS = 2048
HEAD_DIM = 32


@dataclass(frozen=True)
class Shape:
    """A size, and the peak learning rate it is trained with."""

    layers: int
    hidden: int
    kv_heads: int
    learning_rate: float


SHAPES = dict(
    zip(
        SIZES,
        (
            Shape(layers=3, hidden=128, kv_heads=2, learning_rate=2e-3),
            Shape(layers=4, hidden=128, kv_heads=2, learning_rate=2e-3),
            Shape(layers=8, hidden=256, kv_heads=4, learning_rate=1.5e-3),
        ),
        strict=True,
    )
)


def config_of(size: str) -> Qwen2Config:
    """The transformers configuration of a size: half as many key-value heads as heads, tied embeddings."""
    shape, ids = SHAPES[size], vocabulary()
    return Qwen2Config(
        vocab_size=len(ids),
        hidden_size=shape.hidden,
        intermediate_size=3 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // HEAD_DIM,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=ids[END],
        pad_token_id=ids[PAD],
        dtype="bfloat16",
    )
