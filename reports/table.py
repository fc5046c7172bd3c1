"""The final table of a run, for a terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from reports.schema import AllocatorSummary, Summary


def print_summary(console: Console, summary: Summary) -> None:
    """Print a run's table and, below it, its warnings."""
    table = Table(title=summary.title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("allocator", no_wrap=True)
    for name in (
        "met",
        "rounds\nall met",
        "quality\ncredited",
        "quality\ndelivered",
        "latency\np50 ms",
        "\np95",
        "\np99",
        "sent\nMB",
        "late/rej./\nfailed",
        "emulator late\np99 ms",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for allocator, s in summary.allocators.items():
        table.add_row(
            allocator,
            f"{s.compliance:.1%}",
            rounds_shown(s),
            f"{s.credited_quality:.1f}",
            f"{s.delivered_quality:.1f}",
            *(_shown(ms) for ms in (s.latency_ms.p50, s.latency_ms.p95, s.latency_ms.p99)),
            f"{s.wire_bytes / 1e6:.1f}",
            f"{s.late}/{s.rejected}/{s.failed}",
            _shown(s.lateness_ms.p99, 1),
        )
    console.print(table)
    if any(s.serving is not None and s.serving.tpot_ms.p50 is not None for s in summary.allocators.values()):
        console.print(_serving_table(summary))
    console.print(summary.footnote, style="dim", highlight=False)
    for warning in summary.warnings:
        console.print(warning, style="bold red", highlight=False)


def _serving_table(summary: Summary) -> Table:
    """As inference servers are measured; for runs in which tokens came one by one."""
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("allocator", no_wrap=True)
    for name in SERVING_COLUMNS:
        table.add_column(name.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for allocator, s in summary.allocators.items():
        table.add_row(allocator, *serving_shown(s))
    return table


SERVING_COLUMNS = (
    *("TTFT p50 ms", "p95", "p99", "TPOT p50 ms", "p95", "p99"),
    *("requests/s", "within SLO", "tokens/s", "within SLO"),
)


def serving_shown(s: AllocatorSummary) -> list[str]:
    """Cells of `SERVING_COLUMNS`."""
    serving = s.serving
    if serving is None:
        return ["–"] * len(SERVING_COLUMNS)
    ttft = [_shown(ms) for ms in (serving.ttft_ms.p50, serving.ttft_ms.p95, serving.ttft_ms.p99)]
    tpot = [_shown(ms, 1) for ms in (serving.tpot_ms.p50, serving.tpot_ms.p95, serving.tpot_ms.p99)]
    requests = [_shown(serving.requests_per_s, 2), _shown(serving.goodput_per_s, 2)]
    return [*ttft, *tpot, *requests, _shown(serving.tokens_per_s), _shown(serving.token_goodput_per_s)]


def rounds_shown(s: AllocatorSummary) -> str:
    """Synchronized rounds in which every request met its deadline."""
    return "–" if s.rounds_all_met is None else f"{s.rounds_all_met:.0%} of {s.rounds}"


def _shown(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
