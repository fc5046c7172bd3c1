"""The benches run at toy size and measure what they say."""

import torch

from models.hf.attention import ATTENTION
from models.hf.bench import SCORED, bench_decode, bench_scoring, decode_table, scoring_table, weight_bytes
from models.hf.loading import ModelSpec, load_model

torch.set_num_threads(1)


def test_bench_scoring() -> None:
    found = bench_scoring(quick=True, device="cpu")
    assert [run.tokens for run in found] == [170, 1024]
    for run in found:
        assert run.plain_ms > 0 and all(-1 < getattr(run, f"{name}_added") < 10 for name in SCORED)
    assert scoring_table(found, "here").row_count == 2


def test_bench_decode() -> None:
    found = bench_decode(quick=True, device="cpu")
    assert [run.kept for run in found] == [170, 42, 1024, 256]
    for run in found:
        assert run.ms > 0 and run.decoder == "plain" and "needs a GPU" in run.reason
    whole, pruned = (run.limit_ms for run in found[2:])
    assert whole > pruned, "a shorter cache has a lower limit"
    assert decode_table(found, "here").row_count == 4


def test_weights_that_a_token_reads() -> None:
    tied = load_model(ModelSpec("toy", "random", "float32"))
    assert weight_bytes(tied) == sum(4 * p.numel() for p in tied.model.parameters())
    assert tied.model.config._attn_implementation == ATTENTION
