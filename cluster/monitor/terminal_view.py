"""A live run on a terminal: renders one snapshot of the watcher to fit the terminal's size."""

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.table import Table
from rich.text import Text

from cluster.monitor.snapshot import AgentView, RunSnapshot

SPARKS = "▁▂▃▄▅▆▇█"
EVENT_LINES = 4
STATE_STYLES = {"running": "bold green", "starting": "bold yellow", "ended": "bold", "cut off": "bold red"}
STATUS_STYLES = {"met": "green", "late": "red", "rejected": "yellow", "failed": "bold red"}
RATES = (("channel", "channel_mbps", 1, "cyan"), ("estimate", "estimate_mbps", 2, "yellow"))
USED = ("used", "used_mbps", 3, "green")


def render(snapshot: RunSnapshot) -> ConsoleRenderable:
    """The view of `scout run --live`; on a low terminal it omits the last agents and says so."""
    return LiveView(snapshot)


class LiveView:
    """A view of one snapshot, laid out when it is drawn."""

    def __init__(self, snapshot: RunSnapshot) -> None:
        self._snapshot = snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield header, rates, turns, agents and events; the agents get the remaining height."""
        width, height = options.max_width, options.height or console.height
        head = [self._header(), *self._rates(width), self._queues(), *self._turns()]
        tail = self._events()
        room = height - len(head) - len(tail) - 4  # table header and rule, the line about omitted agents, the cursor
        yield from (_cut(line, width) for line in head)
        if self._snapshot.agents and room > 0:
            shown = self._snapshot.agents[:room]
            yield self._agents(shown, width)
            if left_out := len(self._snapshot.agents) - len(shown):
                yield Text(f" and {left_out} more agents", style="dim")
        yield from (_cut(line, width) for line in tail)

    def _header(self) -> Text:
        s = self._snapshot
        line = Text.assemble((_printable(s.run), "bold"), "  ", (s.state, STATE_STYLES.get(s.state, "")))
        if s.allocator:
            turn = s.allocators.index(s.allocator) + 1
            line.append(f"  turn {turn} of {len(s.allocators)}: {_printable(s.allocator)}")
            policy = _printable(s.timeline.get("policy", ""))
            if policy and policy != _printable(s.turns[turn - 1].policy):
                line.append(f", decided by {policy}", style="yellow")
        if s.at_s is not None:
            line.append(f"  {s.at_s:.0f} s")
        return line

    def _rates(self, width: int) -> Iterable[Text]:
        points = self._snapshot.points
        if not points:
            return
        rows = (*RATES, USED)
        top = max([point[column] or 0.0 for point in points for *_, column, _ in rows], default=0.0)
        for name, key, column, style in rows:
            line = Text.assemble(f"{name:>8} {_rate(self._snapshot.timeline.get(key)):>7} Mbit/s ")
            values = [point[column] for point in points]
            yield line.append(_spark(values, top, max(10, min(60, width - 26))), style=style)

    def _queues(self) -> Text:
        latest = self._snapshot.timeline
        if not latest:
            return Text("waiting for the first request", style="dim")
        cloud = [ms for ms in latest.get("cloud_ms") or () if ms is not None]
        busy = sum(ms > 0 for ms in cloud)
        text = f"{latest.get('in_flight', 0)} on the uplink, {latest.get('waiting', 0)} waiting"
        text += f"; cloud: {busy} of {len(cloud)} workers busy, for {max(cloud):.0f} ms at most" if cloud else ""
        deadline_ms = self._snapshot.deadline_ms
        return Text(text + (f"; deadline {deadline_ms:g} ms" if deadline_ms else ""))

    def _turns(self) -> Iterable[Text]:
        for turn in self._snapshot.turns:
            if not turn.issued and turn.name != self._snapshot.allocator:
                continue
            share = "–" if turn.compliance is None else f"{turn.compliance:.1%}"
            planned = f" of {turn.planned}" if turn.planned else ""
            line = Text.assemble(f"{_printable(turn.name)}: ", (f"{share} met", "bold"))
            line.append(f", {turn.ended}{planned} ended")
            for status in ("late", "rejected", "failed"):
                if count := getattr(turn, status):
                    line.append(f", {count} {status}", style=STATUS_STYLES[status])
            yield line

    def _agents(self, agents: list[AgentView], width: int) -> Table:
        table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("agent", justify="right", no_wrap=True)
        wide = width >= 80
        if wide:
            table.add_column("profile", no_wrap=True, max_width=24)
        table.add_column("mode", no_wrap=True, max_width=16)
        table.add_column("grant", justify="right", no_wrap=True)
        if wide:
            table.add_column("estimate", justify="right", no_wrap=True)
        table.add_column("last", no_wrap=True)
        table.add_column("ms", justify="right", no_wrap=True)
        table.add_column("met", justify="right", no_wrap=True)
        for agent in agents:
            status = "paused" if agent.paused else agent.status
            latency_ms = agent.latency_ms
            cells: list[Text | str] = [str(agent.id)]
            cells += [Text(_printable(agent.profile))] if wide else []
            cells += [Text(_printable(agent.mode)), _rate(agent.grant_mbps)]
            cells += [_rate(agent.estimate_mbps)] if wide else []
            cells += [Text(_printable(status), style=STATUS_STYLES.get(status, "yellow"))]
            cells += ["–" if latency_ms is None else f"{latency_ms:.0f}", f"{agent.met}/{agent.ended}"]
            table.add_row(*cells)
        return table

    def _events(self) -> list[Text]:
        lines = []
        for event in self._snapshot.events[-EVENT_LINES:]:
            at_s = event.get("at_s")
            when = f"{at_s:7.1f} s" if isinstance(at_s, int | float) else " " * 9
            style = "red" if event.get("kind") == "fault" else "magenta"
            lines.append(Text.assemble(f"{when}  ", (_printable(event.get("text", "")), style)))
        return lines


def _cut(line: Text, width: int) -> Text:
    """Truncate to one terminal line, so that heights are known."""
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line


def _spark(values: list[float | None], top: float, width: int) -> str:
    """The values as one-character bars relative to `top`, the newest on the right."""
    stride = -(-len(values) // width) or 1
    shown = values[::-1][::stride][::-1]
    steps = len(SPARKS) - 1
    return "".join(" " if v is None else SPARKS[min(steps, round(v / top * steps)) if top else 0] for v in shown)


def _rate(mbps: Any) -> str:
    """A rate with about three digits."""
    if not isinstance(mbps, int | float):
        return "–"
    return f"{mbps:.0f}" if mbps >= 100 else f"{mbps:.1f}" if mbps >= 1 else f"{mbps:.2f}"


def _printable(text: Any) -> str:
    """Replace control characters, which a terminal would execute: names come from files."""
    return "".join(c if c.isprintable() else "�" for c in str(text))
