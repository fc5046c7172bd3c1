"""The consoles of the project: text is text. Names and descriptions come from files; none is markup or a command."""

import re
from typing import Any

from rich.console import Console
from rich.text import Text

# Control characters but tab and newline; halves of surrogate pairs; characters that change the direction of others.
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


class PlainConsole(Console):
    """A console that prints what it is given: square brackets and colons as they are, control characters as escapes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """What stands for a text in output: whole lines, cells, titles."""
        return super().render_str(printable(text), **settings)


def printable(text: str) -> str:
    """The text, with an escape such as `\\x1b` for each character that would act on the terminal instead of showing."""
    return COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
