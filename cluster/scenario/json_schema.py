"""The JSON Schema of scenarios: for editors, and for the reference of all keys in the documentation.

What only the whole scenario can show (a mode that no profile has, an event after the end) is not in it; `Scenario.load`
checks that.
"""

from typing import Any

from cluster.scenario.schema import Scenario

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def scenario_schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) that every valid scenario file satisfies."""
    schema = Scenario.model_json_schema()
    del schema["properties"]["base_dir"]  # not a key of files
    for part in (schema, *schema["$defs"].values()):
        part["description"] = " ".join(part.get("description", "").split())
        properties = part.get("properties", {})
        for settings in properties.values():
            settings.pop("title", None)
        if "const" in properties.get("kind", {}):  # what tells the members of a union apart is never left out
            del properties["kind"]["default"]
            part["required"] = ["kind", *part.get("required", ())]
    return {"$schema": DIALECT, **schema, "title": "A Scout scenario"}
