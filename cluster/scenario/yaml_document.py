"""YAML documents whose errors say where: file, line, key, what was found, what is allowed."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

MAX_DOCUMENT_BYTES = 4 * 2**20
MAX_VALUES = 200_000
MAX_DEPTH = 50
Where = tuple[str | int, ...]


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
        """The first thing that pydantic found wrong; a misspelt key before the one that is missing for it."""
        found = error.errors(include_url=False)
        first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
        where = self._without_tags(first["loc"])
        kind, message = first["type"], first["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            allowed = ", ".join(sorted(allowed_keys(model, first["loc"][:-1])))
            return self.error(where, f"unknown key; allowed here: {allowed}")
        if kind == "missing":
            return self.error(where, "is missing")
        if kind == "union_tag_not_found":
            tags = ", ".join(_tags_at(model, where))
            return self.error((*where, "kind"), f"is missing; one of {tags}")
        if kind == "union_tag_invalid":
            tag, tags = first["ctx"]["tag"], first["ctx"]["expected_tags"]
            return self.error((*where, "kind"), f"{tag!r} is not one of {tags}")
        if kind == "value_error":
            return self.error(where, message)
        return self.error(where, f"{_shown(first['input'])}: {message[0].lower()}{message[1:]}")

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

    def _without_tags(self, loc: Iterable[str | int]) -> Where:
        """Pydantic's location without the names of union members, which the document doesn't have."""
        where: list[str | int] = []
        at: Any = self.data
        for part in loc:
            if isinstance(at, dict) and part not in at and at.get("kind") == part:
                continue
            where.append(part)
            try:
                at = at[part]
            except (KeyError, IndexError, TypeError):
                at = None
        return tuple(where)


def dotted(where: Where) -> str:
    """`agents.groups[0].profile`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.removeprefix(".")


def allowed_keys(model: type[BaseModel], loc: Iterable[str | int]) -> set[str]:
    """Keys that a document may have at a pydantic location below `model`."""
    keys = set()
    for found in _models_at(model, loc):
        keys |= {name for name, field in found.model_fields.items() if not field.exclude}
    return keys


def _models_at(model: type[BaseModel], loc: Iterable[str | int]) -> list[type[BaseModel]]:
    at = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        tagged = [m for m in at if _tag(m) == part]
        fields = [m.model_fields[part] for m in at if part in m.model_fields]
        at = tagged or [inner for field in fields for inner in _models_in(field.annotation)]
    return at


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return get_args(field.annotation)[0] if field and get_origin(field.annotation) is Literal else None


def _tags_at(model: type[BaseModel], where: Where) -> list[str]:
    return [tag for tag in map(_tag, _models_at(model, where)) if tag]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
