"""Commands about scenario files: a first one to edit, and their schema."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.console import fail, progress


def init(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist yet.")] = Path("scenario.yaml"),
) -> None:
    """Write a commented scenario to start from."""
    from cluster.scenario.shipped import TEMPLATE

    if file.suffix not in (".yaml", ".yml"):
        fail(f"{file}: scenarios are in .yaml files")
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError:
        fail(f"{file}: exists already; give another name")
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    progress(f"wrote {file}; run it with: scout run {file} --engine simulated")


def schema() -> None:
    """Print the JSON Schema of scenarios, with which editors complete and check them."""
    from cluster.scenario.json_schema import scenario_schema

    print(json.dumps(scenario_schema(), indent=1, allow_nan=False))
