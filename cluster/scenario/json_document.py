"""JSON documents whose errors say where: file, line, key, what was found, what is allowed."""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster.scenario.explain import Where, dotted, explain, shown
from cluster.scenario.yaml_document import DocumentError
from configs.reading import FileRefused, read_text

MAX_JSON_BYTES = 16 * 2**20
SPACE = re.compile(r"[ \t\r\n]*")


class JsonFile:
    """A JSON object. Lines are looked up only when something is wrong, so large files are read at full speed."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._text = text
        try:
            self.data = json.loads(
                text, object_pairs_hook=_without_repeats, parse_constant=_no_constant, parse_int=_whole
            )
        except json.JSONDecodeError as error:
            raise DocumentError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from None
        except _NumberTooLong as error:
            line = text.count("\n", 0, text.find(str(error))) + 1
            raise DocumentError(f"{path}:{line}: not JSON: a number of {len(str(error)):,} digits") from None
        except (ValueError, RecursionError) as error:  # a key twice, NaN, 5,000 brackets
            raise DocumentError(f"{path}: not JSON: {error}") from None
        if not isinstance(self.data, dict):
            raise DocumentError(f"{path}: must be an object, {{...}}")

    @classmethod
    def read(cls, path: Path) -> "JsonFile":
        """Raises DocumentError: no such file, too large, not a regular file, not text, not a JSON object."""
        try:
            return cls(path, read_text(path, MAX_JSON_BYTES))
        except FileNotFoundError as error:
            raise DocumentError(f"{path}: {error.strerror}") from None
        except FileRefused as error:
            raise DocumentError(str(error)) from None

    def error(self, where: Where, message: str) -> DocumentError:
        """`file:line: key: message`, with the line of the innermost key that the document has."""
        return DocumentError(f"{self.path}:{self._line(where)}: {dotted(where)}: {message}")

    def explain(self, error: ValidationError, model: type[BaseModel]) -> DocumentError:
        """The first thing that pydantic found wrong, with its line."""
        return self.error(*explain(error, self.data, model))

    def _line(self, where: Where) -> int:
        at = _after_space(self._text, 0)
        for part in where:
            child = _child(self._text, at, part)
            if child is None:
                break
            at = child
        return self._text.count("\n", 0, at) + 1


def _child(text: str, at: int, part: str | int) -> int | None:
    """Where the value of a key, or an item, of the object or array at `at` begins in (valid) JSON; None: not there."""
    decoder = json.JSONDecoder()
    kind, index = text[at], 0
    if kind not in "{[":
        return None
    at = _after_space(text, at + 1)
    while text[at] not in "}]":
        key: str | int = index
        if kind == "{":
            key, at = decoder.raw_decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)
        if key == part:
            return at
        _, at = decoder.raw_decode(text, at)
        at = _after_space(text, at)
        if text[at] == ",":
            at = _after_space(text, at + 1)
        index += 1
    return None


def _after_space(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    return match.end() if match else at


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} is twice in one object")
    return found


class _NumberTooLong(Exception):
    """A number with more digits than Python reads."""


def _whole(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:
        raise _NumberTooLong(digits) from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
