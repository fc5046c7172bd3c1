"""What commands share: consoles, exit codes, one JSON document on standard output, one line for a mistake."""

import json
import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

EXIT_FAILED = 1  # a run that ended, but is partial through no wish of the user's, or invalid
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130

# Files and pipes have no width of their own; the table needs 126 where allocators have long names.
console = Console(width=None if sys.stdout.isatty() else 126)
messages = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else there.")]


class ResultStream:
    """Keeps standard output clean for the JSON document, whatever libraries and child processes print there."""

    def __init__(self, as_json: bool) -> None:
        self._file = None
        if as_json:
            sys.stdout.flush()
            self._file = os.fdopen(os.dup(1), "w", encoding="utf-8")
            os.dup2(2, 1)

    def write(self, document: Any, show: Any) -> None:
        """Write the document, or show it where JSON wasn't asked for."""
        if self._file is None:
            show()
        else:
            self._file.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
            self._file.close()


def fail(error: Exception | str) -> NoReturn:
    """One message for the user's mistake, and exit code 2."""
    messages.print(f"[bold red]scout:[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(EXIT_WRONG_INPUT)
