"""The reference of all keys of a scenario, from its JSON Schema."""

from collections.abc import Iterator
from typing import Any

from cluster.scenario.json_schema import scenario_schema

# Units by the end of a key's name, as all keys have them.
UNITS = {
    "_ms": "ms",
    "_s": "s",
    "mbps": "Mbit/s",
    "_db": "dB",
    "percent": "%",
    "_tokens": "tokens",
    "_packets": "packets",
}
UNITS |= {"rate_per_s": "1/s", "ms": "ms"}
INTRODUCTION = """# Scenario keys

Every key that a scenario may have, made from the models that check scenarios. `scout schema` prints the same as JSON
Schema, for editors. Units are part of names: `_ms`, `_s`, `mbps` (link-layer, decimal megabits a second).
[Scenarios](../scenarios.md) explains them with examples.
"""


def page() -> str:
    """The page's Markdown."""
    schema = scenario_schema()
    parts: dict[str, dict[str, Any]] = {"Scenario": schema, **schema["$defs"]}
    return (
        "\n".join([INTRODUCTION, *(line for name in _reachable(parts) for line in _section(name, parts[name]))]) + "\n"
    )


def _reachable(parts: dict[str, dict[str, Any]]) -> list[str]:
    """All parts, each after the one that names it first."""
    found = ["Scenario"]
    for name in found:
        found += [
            other for other in dict.fromkeys(_references(parts[name].get("properties", {}))) if other not in found
        ]
    return found


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"].rpartition("/")[2]
        for key, inner in value.items():
            if key != "discriminator":
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _section(name: str, part: dict[str, Any]) -> Iterator[str]:
    properties = dict(part.get("properties", {}))
    kind = properties.pop("kind", {}).get("const")
    yield f"\n## {name}{f' (`kind: {kind}`)' if kind else ''} {{#{name.lower()}}}\n\n{part['description']}\n"
    if properties:
        yield "| key | type | unit | default | meaning |\n|---|---|---|---|---|"
    required = part.get("required", ())
    for key, settings in properties.items():
        default = "required" if key in required else _default(settings)
        cells = (f"`{key}`", _type(settings), _unit(key, settings), default, settings["description"])
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _unit(key: str, settings: dict[str, Any]) -> str:
    if "number" not in str(settings) and "integer" not in str(settings):
        return ""
    return next((unit for ending, unit in sorted(UNITS.items(), key=lambda u: -len(u[0])) if key.endswith(ending)), "")


def _default(settings: dict[str, Any]) -> str:
    if "default" not in settings:
        return ""
    value = settings["default"]
    if value is None:
        return "–"
    if isinstance(value, dict | list) and value:
        return "its own defaults" if isinstance(value, dict) else "`[deadline]`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


def _type(settings: dict[str, Any]) -> str:
    if "$ref" in settings:
        name = settings["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in settings or "enum" in settings:
        return " or ".join(f"`{value}`" for value in settings.get("enum", [settings.get("const")]))
    for union in ("anyOf", "oneOf"):
        if union in settings:
            return " or ".join(_type(each) for each in settings[union] if each.get("type") != "null")
    if settings.get("type") == "array":
        if "prefixItems" in settings:
            return "[" + ", ".join(_type(each) for each in settings["prefixItems"]) + "]"
        return f"list of {_type(settings['items'])}"
    names = {"string": "text", "number": "number", "integer": "whole number", "boolean": "`true` or `false`"}
    return names.get(settings.get("type", ""), "any") + _bounds(settings)


def _bounds(settings: dict[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {settings[key]:,.12g}" for key, sign in signs.items() if key in settings]
    return f", {', '.join(found)}" if found else ""
