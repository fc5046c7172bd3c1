"""The codec's bench measures what it says, and its table shows it."""

import io
import json
from dataclasses import asdict

import torch
from rich.console import Console

from kvcache.bench import bench_codec, codec_table
from kvcache.quantizers import QUANTIZERS


def test_bench_codec() -> None:
    threads = torch.get_num_threads()
    found = bench_codec(quick=True, device="cpu")
    assert torch.get_num_threads() == threads
    json.dumps([asdict(row) for row in found], allow_nan=False)
    rows = {row.quantizer: row for row in found}
    assert set(rows) == set(QUANTIZERS)
    assert rows["bf16"].bits_per_value == 16 and rows["int4"].bits_per_value == 4.125
    for row in rows.values():
        assert all(getattr(row, f"{job}_gb_per_s") > 0 for job in ("pack", "unpack", "send", "receive"))
        assert row.slower_of_copy < 1, "whatever it does, it reads what a copy reads"
    console = Console(width=126, file=io.StringIO(), record=True)
    console.print(codec_table(found, "this machine"))
    text = console.export_text()
    assert all(name in text for name in QUANTIZERS) and torch.__version__ in text and "this machine" in text
