"""Text is text everywhere: on the terminal, in the report, as a path; it is never markup, nor a command."""

import io
import os
from pathlib import Path

import pytest
import yaml
from rich.table import Table

from reports.page import run_page, write_report
from reports.runs import read_run
from reports.table import print_summary
from reports.terminal import PlainConsole, printable
from tests.support.commands import scout

SCENARIO = {
    "name": "markup",
    "deadline_ms": 5000,
    "uplink": {"channel": {"kind": "constant", "mbps": 50}},
    "arrivals": {"kind": "synchronized", "rounds": 1, "period_s": 8},
    "agents": {"groups": [{"profile": "measured/qwen2.5-7b"}]},
}
TEXTS = [
    "bytes [/month]",
    "[red]",
    "[bold]a[/bold]",
    "[/]",
    "[link=file:///etc/passwd]x[/link]",
    "[[[",
    ":smile: :warning:",
    "\\[red]",
    "<b>&amp;</b>",
    "$\\frac{a$",
    "{{ 7*7 }} {% x %}",
    "**a** _b_ `c` [d](e) ~~f~~",
    "\U0001f600 漢字 עברית",
    "%s %(x)s {0}",
]
COMMANDS = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "a\rb",
    "\x08\x08",
    "\x9b31m",
    "\u202ereversed",
    "\u2066x",
    "a\0b",
    "\x7f",
    "\x0c",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_printed_as_they_are(text: str) -> None:
    shown = io.StringIO()
    console = PlainConsole(file=shown, width=200, force_terminal=True, color_system=None)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(text, table, style="bold red")
    assert shown.getvalue().count(text) == 4 and printable(text) == text


@pytest.mark.parametrize("text", COMMANDS)
def test_commands_are_shown_not_executed(text: str) -> None:
    shown = io.StringIO()
    console = PlainConsole(file=shown, width=200, force_terminal=True, color_system=None)
    table = Table(title=text)
    table.add_row(text)
    console.print(text, table)
    found = set(shown.getvalue()) - {"\n"}
    assert all(character.isprintable() for character in found), found
    assert shown.getvalue().count(printable(text)) == 3


@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[1], TEXTS[9], TEXTS[11], "\x1b[31mred"])
def test_a_run_with_such_a_description_has_its_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SCENARIO | {"description": text}))
    out = tmp_path / "o[red]2"
    done = scout("run", tmp_path / "s.yaml", "--engine", "simulated", "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"run folder: {out}" in done.stderr and printable(text) in done.stdout and "\x1b" not in done.stdout
    run = read_run(out)
    assert run.summary.title == f"markup: {text}"
    page = write_report(run_page(run), tmp_path / "report")
    assert "<b>" not in page.read_text().partition("<main")[0] or "<b>" not in text
    shown = io.StringIO()
    print_summary(PlainConsole(file=shown, width=126), run.summary)
    assert printable(text) in shown.getvalue()


@pytest.mark.parametrize("command", [["report"], ["run"], ["recover"], ["allocate"], ["dashboard"]])
@pytest.mark.parametrize("name", ["[red]x", "[/red]", "\x1b[31m", "a\nb", "[/]"])
def test_mistakes_name_the_file_as_it_is(tmp_path: Path, command: list[str], name: str) -> None:
    done = scout(*command, str(tmp_path / name))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert printable(name).split("\n")[0] in done.stderr and "\x1b" not in done.stderr


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(name)
    for command in (["run", name + "/s.yaml"], ["run", tmp_path / "s.yaml", "--engine", "simulated", "--out", name]):
        for folder in (tmp_path, Path(name)):
            (folder / "s.yaml").write_text(yaml.safe_dump(SCENARIO))
        done = scout(*command)
        assert done.returncode == 2 and "UTF-8" in done.stderr and "Traceback" not in done.stderr
