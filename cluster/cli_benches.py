"""`scout bench` for what real models cost: the codec, scoring, decoding."""

from typing import Annotated, Any, Literal

import typer

from cluster.terminal import Json, ResultStream, console, fail

Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU where there is one.")]
Quick = Annotated[bool, typer.Option(help="Some seconds (on a CPU): fewer sizes and repeats.")]
Shapes = Annotated[
    str | None, typer.Option(help="Of qwen2.5-3b, qwen2.5-7b, qwen2.5-14b, by comma; default: all, on a CPU a toy.")
]


def register(bench: typer.Typer) -> None:
    """Add these commands."""
    for command in (codec, scoring, decode):
        bench.command()(command)


def codec(quick: Quick = False, device: Device = "auto", as_json: Json = False) -> None:
    """Measure packing and unpacking of caches, in GB/s of bf16 input, against a memory copy."""
    _check(device)
    from kvcache.bench import bench_codec, codec_table

    result = ResultStream(as_json)
    found = bench_codec(quick, None if device == "auto" else device)
    result.write(found, lambda: console.print(codec_table(found)))


def scoring(quick: Quick = False, device: Device = "auto", shapes: Shapes = None, as_json: Json = False) -> None:
    """Measure what scoring the context adds to prefill, against plain SDPA prefill."""
    _check(device)
    from models.hf.bench import bench_scoring, scoring_table

    result = ResultStream(as_json)
    found = bench_scoring(quick, None if device == "auto" else device, _shapes(shapes))
    result.write(found, lambda: console.print(scoring_table(found)))


def decode(quick: Quick = False, device: Device = "auto", shapes: Shapes = None, as_json: Json = False) -> None:
    """Measure the time of a decoded token, on a whole and a pruned cache, against what memory bandwidth allows."""
    _check(device)
    from models.hf.bench import bench_decode, decode_table

    result = ResultStream(as_json)
    found = bench_decode(quick, None if device == "auto" else device, _shapes(shapes))
    result.write(found, lambda: console.print(decode_table(found)))


def _check(device: str) -> None:
    """Ends with a line if the device or torch isn't there."""
    try:
        torch: Any = __import__("torch")
        __import__("transformers")
    except ImportError:
        fail("real models need torch and transformers: pip install 'scout-emulator[models]'")
    if device == "cuda" and not torch.cuda.is_available():
        fail(
            "--device cuda: torch sees no GPU here; on a machine with one, install torch for CUDA, or take --device cpu"
        )
    torch.set_num_threads(1)  # a core's worth, as actors get it


def _shapes(names: str | None) -> tuple[str, ...] | None:
    from models.hf.bench import SHAPES

    if names is None:
        return None
    wanted = tuple(name.strip() for name in names.split(","))
    if unknown := [name for name in wanted if name not in (*SHAPES, "toy")]:
        fail(f"--shapes: no {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    return wanted
