"""YAML documents whose errors say where: file, line, key, what was found, what is allowed."""

import copy
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cluster.scenario.explain import Where, dotted, explain

MAX_DOCUMENT_BYTES = 4 * 2**20
MAX_VALUES = 200_000
MAX_DEPTH = 50


class DocumentError(ValueError):
    """A document that a user wrote is wrong; the message is for that user."""


class Document:
    """A YAML mapping that remembers the line of every key."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._lines: dict[Where, int] = {}
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self.data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            raise DocumentError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from None
        except (ValueError, RecursionError) as error:  # an impossible date, an alias of itself
            raise DocumentError(f"{path}: not YAML: {error}") from None
        if not isinstance(self.data, dict):
            raise DocumentError(f"{path}: must be a mapping of keys to values")
        if node is not None:
            self._note_lines(node, ())

    @classmethod
    def read(cls, path: Path) -> "Document":
        """Raises DocumentError: no such file, too large, not text, not a YAML mapping."""
        try:
            if path.stat().st_size > MAX_DOCUMENT_BYTES:
                raise DocumentError(f"{path}: larger than {MAX_DOCUMENT_BYTES >> 20} MiB")
            return cls(path, path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DocumentError(f"{path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise DocumentError(f"{path}: not a text file") from None

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

    def _note_lines(self, node: yaml.Node, where: Where) -> None:
        if len(self._lines) > MAX_VALUES or len(where) > MAX_DEPTH:  # aliases can make more of a document than its size
            raise DocumentError(f"{self.path}: more than {MAX_VALUES} values, or more than {MAX_DEPTH} levels deep")
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                path = (*where, key.value)
                if path in self._lines:
                    raise DocumentError(f"{self.path}:{key.start_mark.line + 1}: {dotted(path)}: is there twice")
                self._lines[path] = key.start_mark.line + 1
                self._note_lines(value, path)
        elif isinstance(node, yaml.SequenceNode):
            for i, item in enumerate(node.value):
                self._lines[(*where, i)] = item.start_mark.line + 1
                self._note_lines(item, (*where, i))
