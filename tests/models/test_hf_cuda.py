"""What only a GPU can show: captured steps answer as plain ones, and split attention is attention."""

import pytest
import torch
from transformers import AutoConfig

from kvcache.selection import SELECTIONS
from models.hf.captured import CapturedDecoder
from models.hf.decode import PlainDecoder, Start
from models.hf.decoders import make_decoder
from models.hf.edge import EdgeModel
from models.hf.loading import LoadedModel, ModelSpec, build_random
from models.hf.prompts import Prompt
from models.hf.splitkv import CHUNK, SplitAttention, attend_plain

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TOKENS = torch.randint(3, 96, (1500,), generator=torch.Generator().manual_seed(5)).tolist()


def loaded(model_type: str, dtype: str = "float32") -> LoadedModel:
    sizes = {
        "hidden_size": 192, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 96, "max_position_embeddings": 4096,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
    }  # fmt: skip
    if model_type == "mistral":
        sizes |= {"sliding_window": None}
    config = AutoConfig.for_model(model_type, **sizes)
    return build_random(ModelSpec(f"tiny-{model_type}", "random", dtype, "cuda"), config)  # type: ignore[arg-type]


def starts_of(model: LoadedModel) -> list[Start]:
    """Whole and pruned caches of different lengths."""
    starts = []
    for length, share, new in ((40, 1.0, 20), (600, 0.25, 20), (1500, 1.0, 12), (1500, 0.1, 20), (300, 0.5, 1)):
        asked = Prompt.of(TOKENS[: length - 8], TOKENS[length - 8 : length])
        found = EdgeModel(model, PlainDecoder(model)).prefill(asked, [SELECTIONS["q2c"]()])
        kept = SELECTIONS["q2c"]().select(found.scores["q2c"], share, 8)
        starts.append(Start(found.handover(kept), found.last_token, new))
    return starts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(28, 4, 128), (6, 2, 32), (5, 5, 64)])
def test_split_attention_is_attention(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    capacity = 40 * CHUNK
    slots = torch.tensor([0, CHUNK - 1, CHUNK, capacity - 1], device="cuda")
    made = [
        torch.randn(4, n, head_dim, device="cuda", dtype=dtype)
        for n in (heads, kv_heads * capacity, kv_heads * capacity)
    ]
    query = made[0]
    keys, values = (x.view(4, kv_heads, capacity, head_dim) for x in made[1:])
    split = SplitAttention(4, heads, kv_heads, head_dim, capacity, torch.device("cuda"))
    found = split(query, keys, values, slots, head_dim**-0.5)
    expected = attend_plain(query.double(), keys.double(), values.double(), slots, head_dim**-0.5)
    error = (found.double() - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "mistral"])
def test_captured_steps_answer_as_plain_ones(model_type: str, compiled: bool) -> None:
    model = loaded(model_type)
    plain, captured = PlainDecoder(model), CapturedDecoder(model, compiled)
    starts = starts_of(model)
    expected = plain.decode(starts)
    assert captured.decode(starts) == expected
    assert [captured.decode([start])[0] for start in starts] == expected
    assert captured.reason == ("" if compiled else "asked not to compile")
    assert len({answer.tokens for answer in expected}) > 2


def test_make_decoder_says_why_not() -> None:
    assert make_decoder(loaded("qwen2")).name == "captured"
    config = AutoConfig.for_model("gpt_neox", hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                  num_attention_heads=4, vocab_size=96)  # fmt: skip
    decoder = make_decoder(build_random(ModelSpec("neox", "random", "float32", "cuda"), config))
    assert decoder.name == "plain" and "gpt_neox" in decoder.reason


def test_scores_on_a_gpu_are_those_on_a_cpu() -> None:
    selections = [make() for make in SELECTIONS.values()]
    on_gpu = loaded("qwen2")
    on_cpu = LoadedModel(
        on_gpu.spec, on_gpu.model, None, on_gpu.fingerprint, on_gpu.stop_tokens, on_gpu.geometry, on_gpu.max_positions
    )
    found = EdgeModel(on_gpu).prefill(Prompt.of(TOKENS[:500], TOKENS[500:520]), selections).scores
    on_cpu.model.to("cpu")
    expected = (
        EdgeModel(on_cpu, PlainDecoder(on_cpu)).prefill(Prompt.of(TOKENS[:500], TOKENS[500:520]), selections).scores
    )
    for name in SELECTIONS:
        torch.testing.assert_close(found[name].cpu(), expected[name], atol=1e-5, rtol=1e-3)
