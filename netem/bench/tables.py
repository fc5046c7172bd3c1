"""The bench's results as tables for a terminal."""

from typing import Any

from rich.table import Table

from netem.wire import SEGMENT_PAYLOAD_BYTES


def bench_tables(result: dict[str, Any]) -> list[Table]:
    """The result of `bench_links` as tables, to be printed with rich."""
    rows = result["rows"]
    title = f"{result['link']} link by {result['privilege']}, Linux {result['kernel']}"
    return [
        _transfers(f"Transfer times: {title}", [row for row in rows if row["measure"] == "transfer"]),
        _reactions([row for row in rows if row["measure"] == "reaction"]),
        _overcommitted([row for row in rows if row["measure"] == "overcommitted"]),
        _replays([row for row in rows if row["measure"] == "replay"]),
        _regrantings([row for row in rows if row["measure"] == "regranting"]),
        _delays([row for row in rows if row["measure"] == "delay"]),
    ]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _transfers(title: str, rows: list[dict[str, Any]]) -> Table:
    table = _table(
        title, "bytes", "Mbit/s", "agents", "ideal ms", "median ms", "median", "least", "most", "Jain", "repeats"
    )
    for row in rows:
        head = [f"{row['payload_bytes']}", f"{row['rate_mbps']:g}", f"{row['agents']}", f"{row['ideal_ms']:.2f}"]
        if "skipped" in row:
            table.add_row(*head, "skipped", row["skipped"])
            continue
        # A message of one frame arrives when the link lets it go, early or late by a frame: milliseconds say more.
        if row["payload_bytes"] <= SEGMENT_PAYLOAD_BYTES:
            errors = [f"{row[key] - row['ideal_ms']:+.2f} ms" for key in ("median_ms", "min_ms", "max_ms")]
            jain = ""
        else:
            errors = [f"{row[key]:+.2%}" for key in ("median_error", "min_error", "max_error")]
            jain = f"{row['jain']:.5f}"
        table.add_row(*head, f"{row['median_ms']:.2f}", *errors, jain, f"{row['repeats']}")
    return table


def _reactions(rows: list[dict[str, Any]]) -> Table:
    table = _table("Until a change acts", "changed", "from Mbit/s", "to Mbit/s", "median ms", "most ms")
    for row in rows:
        rates = f"{row['before_mbps']:g}", f"{row['after_mbps']:g}"
        table.add_row(row["what"], *rates, f"{row['median_ms']:.0f}", f"{row['max_ms']:.0f}")
    return table


def _overcommitted(rows: list[dict[str, Any]]) -> Table:
    table = _table("Grants add up to four times the channel", "agents", "channel Mbit/s", "achieved", "error", "Jain")
    for row in rows:
        achieved = f"{row['achieved_mbps']:.2f}", f"{row['error']:+.2%}", f"{row['jain']:.5f}"
        table.add_row(f"{row['agents']}", f"{row['channel_mbps']:g}", *achieved)
    return table


def _replays(rows: list[dict[str, Any]]) -> Table:
    table = _table("A trace replayed as the channel", "trace", "s", "mean Mbit/s", "worst at a second", "mean of 20 ms")
    for row in rows:
        errors = f"{row['largest_error_at_a_second']:+.2%}", f"{row['mean_error_of_20_ms']:.2%}"
        table.add_row(row["trace"], f"{row['seconds']:g}", f"{row['mean_mbps']:.1f}", *errors)
    return table


def _regrantings(rows: list[dict[str, Any]]) -> Table:
    table = _table("All grants change ten times a second", "agents", "Mbit/s", "changes", "median", "worst", "together")
    for row in rows:
        errors = (f"{row[key]:+.2%}" for key in ("error", "worst_error", "all_error"))
        table.add_row(f"{row['agents']}", f"{row['channel_mbps']:g}", f"{row['changes']}", *errors)
    return table


def _delays(rows: list[dict[str, Any]]) -> Table:
    table = _table("Delay one way, by round trips", "asked ms", "round trip ms", "error ms")
    for row in rows:
        if "skipped" in row:
            table.add_row(f"{row['asked_ms']:g}", "skipped", row["skipped"])
        else:
            table.add_row(f"{row['asked_ms']:g}", f"{row['round_trip_ms']:.2f}", f"{row['error_ms']:+.2f}")
    return table
