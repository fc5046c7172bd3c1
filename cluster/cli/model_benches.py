"""`scout bench` of model code: the codec, prefill with scores, decoding. Only a running command loads torch."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from cluster.cli.console import Json, ResultStream, console, fail, messages

if TYPE_CHECKING:
    from rich.table import Table

Run = TypeVar("Run")
Quick = Annotated[bool, typer.Option(help="Fewer sizes and repeats.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="The device; auto: a GPU if there is one.")]
CodecDevice = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="The device; auto: the CPU, and a GPU if there is one.")
]
Models = Annotated[
    str | None,
    typer.Option(
        help="Models with random weights, separated by commas; default: qwen2.5-3b,-7b,-14b on a GPU, toy on a CPU."
    ),
]
Tokens = Annotated[str | None, typer.Option(help="Prompt lengths in tokens, separated by commas, such as 170,1024.")]

MIN_TOKENS = 32  # a query of 24 tokens, and a context of which a quarter can be kept


def codec(quick: Quick = False, device: CodecDevice = "auto", as_json: Json = False) -> None:
    """Measure the speed of packing and unpacking caches by quantizer, relative to a memory copy.

    On a GPU with Triton: fused kernels relative to an eager copy on it, sending and receiving relative to its pinned
    link. Takes seconds, on a GPU a minute.
    """
    result = ResultStream(as_json)
    where = _device(device)
    import torch

    from kvcache.bench import bench_codec, codec_table
    from kvcache.fused import AVAILABLE as FUSED
    from reports.machine import describe_machine

    on_gpu = where == "cuda" or (where is None and torch.cuda.is_available())
    rows = [] if where == "cuda" and FUSED else bench_codec(quick, "cpu" if FUSED else where)
    document: dict[str, object] = {"quick": quick, "rows": rows}
    tables = [partial(codec_table, rows)] if rows else []
    if on_gpu and FUSED:
        from kvcache.fused.bench import bench_fused, fused_table

        fused = bench_fused(quick)
        document["fused"] = fused
        tables.append(partial(fused_table, fused))
    machine = describe_machine()

    def show() -> None:
        for table in tables:
            console.print(table(machine.line()))

    result.write({"machine": machine, **document}, show)


def scoring(
    quick: Quick = False,
    device: Device = "auto",
    models: Models = None,
    tokens: Tokens = None,
    as_json: Json = False,
) -> None:
    """Measure the time that scoring the context adds to prefill (plain SDPA), in interleaved runs."""
    result = ResultStream(as_json)
    where = _device(device)
    from models.hf.bench import QUERY, bench_scoring, scoring_table

    _measure_models(result, bench_scoring, scoring_table, {"query": QUERY}, quick, where, models, tokens)


def decode(
    quick: Quick = False,
    device: Device = "auto",
    models: Models = None,
    tokens: Tokens = None,
    as_json: Json = False,
) -> None:
    """Measure the time per output token (TPOT), relative to the memory-bandwidth bound of weights and cache."""
    result = ResultStream(as_json)
    where = _device(device)
    from models.hf.bench import RETENTION, bench_decode, decode_table

    _measure_models(result, bench_decode, decode_table, {"retention": RETENTION}, quick, where, models, tokens)


def _measure_models(
    result: ResultStream,
    measure: Callable[..., list[Run]],
    table: Callable[[list[Run], str], "Table"],
    constants: dict[str, float],
    quick: bool,
    device: str | None,
    models: str | None,
    tokens: str | None,
) -> None:
    import torch

    from models.hf.bench import SHAPES, TOY
    from reports.machine import describe_machine

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    names = None if models is None else tuple(name.strip() for name in models.split(","))
    lengths = None if tokens is None else _lengths(tokens)
    for name in names or ():
        if name not in (*SHAPES, TOY):
            fail(f"--models: no {name!r}; there are {', '.join((*SHAPES, TOY))}")
        if on_cpu and name != TOY:
            fail(f"{name} without a GPU is too large and slow for this bench; `--models {TOY}` is for CPUs")
    if on_cpu:
        messages.print(f"on one CPU core, model {TOY}: says nothing about Qwen2.5 or a GPU", highlight=False)
        torch.set_num_threads(1)  # as in the actors of a live run
    try:
        runs = measure(quick, device, names, lengths)
    except torch.OutOfMemoryError:
        fail("the GPU's memory is too small; take fewer or smaller ones of --models and --tokens")
    except ValueError as error:  # too long a prompt
        fail(error)
    machine = describe_machine()
    document = {"machine": machine, **constants, "runs": runs}
    result.write(document, lambda: console.print(table(runs, machine.line())))


def _device(asked: str) -> str | None:
    """What the benches call it; None for `auto`."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        fail(f"{error.name} isn't installed; models need it: pip install 'scout-emulator[models]'")
    if asked == "cuda" and not torch.cuda.is_available():
        if torch.version.cuda is None:
            fail(
                f"no GPU: torch {torch.__version__} is built without CUDA; on a machine with an NVIDIA GPU, install "
                "another as https://pytorch.org/get-started/locally says, or use --device cpu"
            )
        fail("no GPU: torch sees none; does `nvidia-smi` list one here, and CUDA_VISIBLE_DEVICES? Or use --device cpu")
    return None if asked == "auto" else asked


def _lengths(text: str) -> tuple[int, ...]:
    try:
        lengths = tuple(int(part) for part in text.split(","))
    except ValueError:
        fail(f"--tokens {text}: numbers by comma, such as 170,1024")
    if min(lengths) < MIN_TOKENS:
        fail(f"--tokens {text}: at least {MIN_TOKENS} each")
    return lengths
