"""YAML documents whose errors say where: file, line, key, what was found, what is allowed."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster.scenario.explain import Where, dotted, explain
from configs.reading import FileRefused, read_text
from configs.yaml_text import YamlRefused, YamlText

MAX_DOCUMENT_BYTES = 2**20


class DocumentError(ValueError):
    """A document that a user wrote is wrong; the message is for that user."""


class Document:
    """A YAML mapping that remembers the line of every key."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        try:
            found = YamlText(text)
        except YamlRefused as error:
            place = f"{path}:{error.line}" if error.line else str(path)
            what = f"{dotted(error.where)}: {error.reason}" if error.where else f"not YAML: {error.reason}"
            raise DocumentError(f"{place}: {what}") from None
        self._lines = found.lines
        self.data = found.data
        if not isinstance(self.data, dict):
            raise DocumentError(f"{path}: must be a mapping of keys to values")

    @classmethod
    def read(cls, path: Path) -> "Document":
        """Raises DocumentError: no such file, not a regular one, too large, not text, not a YAML mapping."""
        try:
            return cls(path, read_text(path, MAX_DOCUMENT_BYTES))
        except FileNotFoundError as error:
            raise DocumentError(f"{path}: {error.strerror}") from None
        except FileRefused as error:
            raise DocumentError(str(error)) from None

    @classmethod
    def of(cls, data: Mapping[str, Any], path: Path) -> "Document":
        """A document that is in no file. Errors name `path`, without lines; relative paths start in its folder."""
        document = cls(path, "{}")
        document.data = dict(data)
        return document

    def changed(self, where: Where, value: Any) -> "Document":
        """A copy with one value changed or added; errors about it name the lines of the file as it is.

        Raises:
            DocumentError: what should hold the value isn't there.
        """
        copied = copy.copy(self)
        copied.data = at = copy.deepcopy(self.data)
        for n, part in enumerate(where[:-1], start=1):
            try:
                at = at[part]
            except (KeyError, IndexError, TypeError):
                raise DocumentError(f"{self.path}: there is no {dotted(where[:n])} to change") from None
        try:
            at[where[-1]] = value
        except (IndexError, TypeError):
            raise DocumentError(f"{self.path}: there is no {dotted(where)} to change") from None
        return copied

    def error(self, where: Where, message: str) -> DocumentError:
        """`file:line: key: message`, with the line of the innermost key that the document has."""
        line = next((self._lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in self._lines), None)
        place = f"{self.path}:{line}" if line else str(self.path)
        return DocumentError(f"{place}: {dotted(where)}: {message}")

    def explain(self, error: ValidationError, model: type[BaseModel]) -> DocumentError:
        """The first thing that pydantic found wrong, with its line."""
        return self.error(*explain(error, self.data, model))


def where_of(key: str) -> Where:
    """The place that `uplink.channel.mbps` or `agents.groups.0.count` names: a number is an index."""
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))
