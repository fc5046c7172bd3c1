"""Says in one line what is wrong with a user's document, for all kinds of documents that pydantic checks."""

import json
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

Where = tuple[str | int, ...]
MAX_SHOWN = 60


def explain(error: ValidationError, data: Any, model: Any) -> tuple[Where, str]:
    """The place in the document and a message about the first error; a misspelt key before the missing one.

    Args:
        data: the document that was checked.
        model: the model, or the union of models, that it was checked against.
    """
    found = error.errors(include_url=False)
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    kind, loc, message = first["type"], first["loc"], first["msg"].removeprefix("Value error, ")
    where = _without_tags(loc, data)
    if kind == "extra_forbidden":
        return where, f"unknown key; allowed here: {', '.join(sorted(_allowed_keys(model, loc[:-1])))}"
    if kind == "missing":
        others = [str(each["loc"][-1]) for each in found[1:] if each["type"] == kind and each["loc"][:-1] == loc[:-1]]
        return (*where, loc[-1]), f"is missing, and so is {', '.join(others)}" if others else "is missing"
    if kind == "union_tag_not_found":
        tags = filter(None, map(_tag, _models_at(model, loc)))
        return (*where, "kind"), f"is missing; one of {', '.join(tags)}"
    if kind == "union_tag_invalid":
        return (*where, "kind"), f"{first['ctx']['tag']!r} is not one of {first['ctx']['expected_tags']}"
    if kind == "value_error":
        return where, message
    return where, f"{shown(first['input'])}: {message[0].lower()}{message[1:]}"


def located(error: ValidationError, data: Any, model: Any) -> str:
    """`place: message`, of a document without lines."""
    where, message = explain(error, data, model)
    return f"{dotted(where)}: {message}" if where else message


def dotted(where: Where) -> str:
    """`agents.groups[0].profile`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_printable(part)}" for part in where)
    return text.removeprefix(".")


def shown(value: object) -> str:
    """A value in a message, shortened."""
    text = repr(value) if isinstance(value, str | float) else json.dumps(value, default=str)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _printable(part: str) -> str:
    return part if part.isprintable() else shown(part)


def _without_tags(loc: Where, data: Any) -> Where:
    """Pydantic's location without its parts that aren't in the document: names of union members, what is missing."""
    where: list[str | int] = []
    for part in loc:
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if part in data if isinstance(data, dict) else in_list:
            where.append(part)
            data = data[part]
    return tuple(where)


def _allowed_keys(model: Any, loc: Iterable[str | int]) -> set[str]:
    """Keys that a document may have at a pydantic location below `model`."""
    return {name for found in _models_at(model, loc) for name, field in found.model_fields.items() if not field.exclude}


def _models_at(model: Any, loc: Iterable[str | int]) -> list[type[BaseModel]]:
    at = _models_in(model)
    for part in loc:
        tagged = [each for each in at if _tag(each) == part]
        fields = [each.model_fields[part] for each in at if isinstance(part, str) and part in each.model_fields]
        # Other parts are indices, keys of free choice and names of union members: the models stay the same.
        at = tagged or [inner for field in fields for inner in _models_in(field.annotation)] or at
    return at


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return get_args(field.annotation)[0] if field and get_origin(field.annotation) is Literal else None
