"""The cost of scoring during prefill, and decode time relative to the memory bound; with random weights."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
import transformers
from rich.box import SIMPLE_HEAD
from rich.table import Table

from kvcache.cache import KVCache
from kvcache.selection import SELECTIONS
from models.hf.attention import ATTENTION
from models.hf.captured import CapturedDecoder
from models.hf.decode import Decoder, PlainDecoder, Start
from models.hf.decoders import make_decoder
from models.hf.edge import EdgeModel
from models.hf.loading import LoadedModel, ModelSpec, load_model
from models.hf.prefill import prefill
from models.hf.prompts import Prompt
from models.hf.stopwatch import Stopwatch

SHAPES = ("qwen2.5-3b", "qwen2.5-7b", "qwen2.5-14b")  # measured on GPUs
TOY = "toy"  # measured on CPUs
LENGTHS = (170, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
QUICK_LENGTHS = (170, 1024, 2048, 8192, 32_768)
QUERY = 24  # tokens, of the length
RETENTION = 0.25
SCORED = ("q2c", "q2c_pooled", "snapkv", "h2o")


@dataclass(frozen=True, slots=True)
class ScoringRun:
    """Prefill without scores, and the share of time that each selection's scores add."""

    model: str
    tokens: int
    plain_ms: float
    q2c_added: float
    q2c_pooled_added: float
    snapkv_added: float
    h2o_added: float


@dataclass(frozen=True, slots=True)
class DecodeRun:
    """Time per output token with `kept` of a prompt's tokens in the cache, and its memory-bandwidth bound.

    Attributes:
        reason: why it isn't the faster decoder, if so.
        plain_ms: with transformers' own decoding; ratio: ms / limit_ms.
    """

    model: str
    tokens: int
    kept: int
    decoder: str
    reason: str
    plain_ms: float
    ms: float
    limit_ms: float
    ratio: float
    copy_gb_per_s: float


def bench_scoring(
    quick: bool = False,
    device: str | None = None,
    shapes: tuple[str, ...] | None = None,
    tokens: tuple[int, ...] | None = None,
) -> list[ScoringRun]:
    """Prefill with scores against transformers' plain SDPA prefill: medians of interleaved runs.

    Args:
        quick: fewer lengths and runs.
        device: `cpu` or `cuda`; None: `cuda` if available.
        shapes: built-in ones; by default all of Qwen2.5 on a GPU, and a toy on a CPU.
        tokens: lengths of prompts, each above QUERY.

    Raises:
        ModelError: a model can't be loaded.
        ValueError: a length that a model doesn't support.
    """
    device, names, lengths = _what(quick, device, shapes, tokens)
    runs = []
    for name in names:
        loaded = load_model(ModelSpec(name, "random", "bfloat16" if device == "cuda" else "float32", device))
        for length in lengths:
            times = _interleaved(loaded, length, repeats=_repeats(length, quick))
            runs.append(ScoringRun(name, length, times["plain"], *(times[s] / times["plain"] - 1 for s in SCORED)))
        del loaded
        _free(device)
    return runs


def bench_decode(
    quick: bool = False,
    device: str | None = None,
    shapes: tuple[str, ...] | None = None,
    tokens: tuple[int, ...] | None = None,
) -> list[DecodeRun]:
    """Time per output token (ms), with a whole cache and a quarter, against reading all of it at copy bandwidth.

    The bandwidth is measured in the same run. Arguments and errors as for `bench_scoring`, but lengths beyond
    a model's maximum are reduced to it.
    """
    device, names, lengths = _what(quick, device, shapes, tokens)
    runs = []
    for name in names:
        loaded = load_model(ModelSpec(name, "random", "bfloat16" if device == "cuda" else "float32", device))
        bytes_per_s = copy_bandwidth(device)
        plain, fast = PlainDecoder(loaded), make_decoder(loaded)
        if isinstance(fast, CapturedDecoder):
            fast.warm_up(1, max(lengths))
        weights = weight_bytes(loaded)
        for length in lengths:
            length = min(length, loaded.max_positions - 64)
            for kept in (length, int(RETENTION * length)):
                cache = _random_cache(loaded, kept, length)
                limit_ms = 1e3 * (weights + cache.nbytes) / bytes_per_s
                fast_ms = _token_ms(fast, cache, 3 if quick else 7)
                plain_ms = fast_ms if fast.name == plain.name else _token_ms(plain, cache, 1 if quick else 3, tokens=16)
                runs.append(
                    DecodeRun(
                        model=name,
                        tokens=length,
                        kept=kept,
                        decoder=fast.name,
                        reason=fast.reason,
                        plain_ms=plain_ms,
                        ms=fast_ms,
                        limit_ms=limit_ms,
                        ratio=fast_ms / limit_ms,
                        copy_gb_per_s=bytes_per_s / 1e9,
                    )
                )
        del loaded, plain, fast, cache
        _free(device)
    return runs


def copy_bandwidth(device: str) -> float:
    """Bytes read and written a second by a device's copy of a large tensor."""
    source = torch.empty(2**32 if device == "cuda" else 2**27, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    watch = Stopwatch(source.device)
    for _ in range(11):
        target.copy_(source)
        watch.lap()
    return 2e3 * source.numel() / median(watch.laps_ms()[1:])


def weight_bytes(loaded: LoadedModel) -> int:
    """Bytes of all weights that a decoded token reads: all but embeddings that aren't also the head."""
    model: Any = loaded.model
    tables = {model.get_input_embeddings().weight.data_ptr()} - {model.get_output_embeddings().weight.data_ptr()}
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.data_ptr() not in tables)


def _what(
    quick: bool, device: str | None, shapes: tuple[str, ...] | None, tokens: tuple[int, ...] | None
) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        return device, shapes or (TOY,), tokens or ((170, 1024) if quick else (170, 512, 1024, 2048, 4096))
    return device, shapes or SHAPES, tokens or (QUICK_LENGTHS if quick else LENGTHS)


def _repeats(length: int, quick: bool) -> int:
    return max(3, (16_384 if quick else 65_536) // length) if length > 1024 else (15 if quick else 40)


def _interleaved(loaded: LoadedModel, length: int, repeats: int) -> dict[str, float]:
    """Median time to the first token (ms), plain and with each selection's scores; interleaved, after one warm-up."""
    tokens = torch.randint(loaded.vocabulary, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    edge = EdgeModel(loaded, PlainDecoder(loaded))
    times: dict[str, list[float]] = {way: [] for way in ("plain", *SCORED)}
    order = random.Random(0)
    for turn in range(repeats + 1):
        for way in order.sample(list(times), len(times)):  # what ran before changes a GPU's clock rate
            loaded.model.set_attn_implementation("sdpa" if way == "plain" else ATTENTION)
            watch = Stopwatch(loaded.device)
            if way == "plain":
                int(prefill(loaded, tokens)[1].argmax())
            else:
                edge.prefill(Prompt.of(tokens[:-QUERY], tokens[-QUERY:]), [SELECTIONS[way]()])
            watch.lap()
            if turn:
                times[way] += watch.laps_ms()
    return {way: median(found) for way, found in times.items()}


def _random_cache(loaded: LoadedModel, kept: int, length: int) -> KVCache:
    g = loaded.geometry
    made = [torch.randn(g.shape(kept), dtype=g.dtype, device=loaded.device) for _ in range(2 * g.layers)]
    layers = tuple(zip(made[::2], made[1::2], strict=True))
    positions = torch.arange(length) if kept == length else torch.randperm(length)[:kept].sort().values
    return KVCache(layers, positions, length)


def _token_ms(decoder: Decoder, cache: KVCache, repeats: int, tokens: int = 32) -> float:
    """Median time per token (ms), by the difference of `tokens` more tokens, which excludes loading the cache."""
    decoder.decode([Start(cache, 1, 4)])
    found = []
    for _ in range(repeats):
        times = []
        for count in (4, 4 + tokens):
            began_s = time.perf_counter()
            answer = decoder.decode([Start(cache, 1, count)])[0]
            times.append(time.perf_counter() - began_s)
            if len(answer.tokens) != count:
                raise RuntimeError(f"{len(answer.tokens)} tokens instead of {count}: a stop token came up")
        found.append(1e3 * (times[1] - times[0]) / tokens)
    return median(found)


def _free(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()


def scoring_table(runs: Sequence[ScoringRun], machine: str) -> Table:
    """The result of `bench_scoring` on a machine as a table."""
    table = _table(f"prefill with scores by {QUERY} query tokens", machine)
    for title in ("model", "tokens", "plain SDPA ms", *(f"{s} adds" for s in SCORED)):
        table.add_column(title, justify="left" if title == "model" else "right")
    for run in runs:
        added = (f"{getattr(run, f'{s}_added'):+.1%}" for s in SCORED)
        table.add_row(run.model, f"{run.tokens:,}", f"{run.plain_ms:,.1f}", *added)
    return table


def decode_table(runs: Sequence[DecodeRun], machine: str) -> Table:
    """The result of `bench_decode` on a machine as a table."""
    reasons = "".join(f"; {r}" for r in dict.fromkeys(run.reason for run in runs) if r)
    table = _table("a decoded token; limit: weights and cache at copy bandwidth" + reasons, machine)
    columns: list[tuple[str, Literal["left", "right"]]] = [("model", "left"), ("tokens", "right"), ("kept", "right")]
    columns += [
        ("decoder", "left"),
        ("plain ms", "right"),
        ("ms", "right"),
        ("limit ms", "right"),
        ("of limit", "right"),
    ]
    for title, justify in columns:
        table.add_column(title, justify=justify)
    for run in runs:
        times = (f"{ms:,.2f}" for ms in (run.plain_ms, run.ms, run.limit_ms))
        table.add_row(run.model, f"{run.tokens:,}", f"{run.kept:,}", run.decoder, *times, f"{run.ratio:.2f}x")
    return table


def _table(title: str, machine: str) -> Table:
    about = f"torch {torch.__version__}, transformers {transformers.__version__}, {machine}"
    return Table(title=f"{title}\n{about}", title_justify="left", box=SIMPLE_HEAD)
