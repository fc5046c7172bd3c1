"""Scenarios as they can be given: a path, a name, a mapping, an object; with overrides."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel

from cluster.scenario.schema import Scenario
from cluster.scenario.shipped import find_scenario
from cluster.scenario.yaml_document import Document, where_of

AnyScenario: TypeAlias = "str | Path | Mapping[str, Any] | Scenario"
"""A file, the name of a scenario that ships with the project, a mapping of a scenario's keys, or the object."""
AnyAllocator: TypeAlias = "str | Mapping[str, Any] | BaseModel | type"
"""A name, the keys of an allocator in a scenario, the object, or a policy's class that can be imported."""
NAMED = Path("scenario")
"""What errors call a scenario that is in no file."""


def document_of(scenario: AnyScenario, overrides: Mapping[str, Any] | None = None) -> Document:
    """The scenario as a document, with overrides.

    Args:
        overrides: values by key, such as `uplink.channel.mbps`; a number in a key is an index.

    Raises:
        DocumentError: it can't be read, or has no such place.
    """
    if isinstance(scenario, Scenario):
        document = Document.of(scenario.resolved(), scenario.base_dir / NAMED)
    elif isinstance(scenario, Mapping):
        document = Document.of(_plain(scenario), NAMED)
    else:
        document = Document.read(find_scenario(scenario))
    for key, value in (overrides or {}).items():
        document = document.changed(where_of(key), _plain(value))
    return document


def load_scenario(
    scenario: AnyScenario,
    allocators: Sequence[AnyAllocator] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Scenario:
    """The scenario, checked. Raises DocumentError."""
    return Scenario.from_document(document_of(scenario, overrides), entries_of(allocators))


def entries_of(allocators: Sequence[AnyAllocator] | None) -> list[Any] | None:
    """Allocators as scenarios write them."""
    if allocators is None:
        return None
    given = [name.strip() for name in allocators.split(",")] if isinstance(allocators, str) else allocators
    return [f"{each.__module__}:{each.__qualname__}" if isinstance(each, type) else _plain(each) for each in given]


def _plain(value: Any) -> Any:
    """A value as YAML would have it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value
