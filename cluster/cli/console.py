"""Output of commands: consoles, exit codes, one JSON document on standard output, one line for a user's mistake."""

import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from pydantic_core import to_jsonable_python
from rich.text import Text

from reports.terminal import PlainConsole, printable

EXIT_FAILED = 1  # a run that is invalid, or partial without the user having interrupted it
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130

# Files and pipes have no width of their own; the table needs 126 where allocators have long names.
console = PlainConsole(width=None if sys.stdout.isatty() else 126)
messages = PlainConsole(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else, on standard output.")]


class ResultStream:
    """Reserves standard output for the JSON document; output of libraries and child processes goes to stderr."""

    def __init__(self, as_json: bool) -> None:
        self._file = None
        if as_json:
            sys.stdout.flush()
            self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
            os.dup2(2, 1)

    def write(self, document: Any, show: Callable[[], None]) -> None:
        """Write the document (models and dataclasses become objects) as JSON, or call `show` without `--json`."""
        if self._file is None:
            show()
        else:
            self._file.write(json.dumps(to_jsonable_python(document), indent=2, allow_nan=False) + "\n")
            self._file.close()


def progress(line: str) -> None:
    """Print a line about a command's progress on standard error."""
    messages.print(line, highlight=False)


def fail(error: Exception | str) -> NoReturn:
    """Print one message about the user's mistake and exit with code 2."""
    line = Text.assemble(("scout:", "bold red"), f" {printable(str(error))}")
    messages.print(line, highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_WRONG_INPUT)
