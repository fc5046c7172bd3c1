"""The gallery: every scenario that ships, with a picture of a simulated turn.

`python docs/_site/gallery.py FOLDER` writes the page and the pictures into a folder.
"""

import itertools
import sys
import tempfile
from pathlib import Path

from agents.arrivals import AnyArrivals
from cluster.run_folder import folder as run_folder
from cluster.scenario.schema import Scenario
from cluster.scenario.shipped import scenarios
from cluster.simulated.engine import run_simulated
from reports.figures import timelines
from reports.runs import read_run

PICTURED_S = 60.0  # a picture shows the first minute: longer turns would be a blur
INTRODUCTION = """# Gallery

The scenarios that ship with Scout, each with a picture of one turn: a simulated one of its last allocator, the first
minute at most. At the top the channel, what is in use of it and the allocator's estimate; then the largest shares; then
the requests, each from its release to its end, in the colour of its mode.
"""


def pages() -> dict[str, str | bytes]:
    """The page, and its pictures as PNG, by their names in the site."""
    made: dict[str, str | bytes] = {}
    sections = [INTRODUCTION]
    for name, path in scenarios().items():
        made[f"gallery/{name}.png"] = picture(Scenario.load(path))
        text = path.read_text(encoding="utf-8").partition("\n")[2]
        comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
        about = " ".join(line.removeprefix("#").strip() for line in comment)
        sections.append(
            f"## {name}\n\n{about}\n\n![A simulated turn of {name}](gallery/{name}.png)\n\n"
            f"```sh\nscout run {name}\n```\n\n"
            f'??? note "configs/{name}.yaml"\n\n    ```yaml\n'
            + "".join(f"    {line}\n" for line in text.splitlines())
            + "    ```\n"
        )
    return {"gallery.md": "\n".join(sections)} | made


def picture(scenario: Scenario) -> bytes:
    """A PNG of the first minute of the last allocator's turn."""
    short = scenario.model_copy(
        update={"allocators": scenario.allocators[-1:], "arrivals": shortened(scenario.arrivals), "events": []}
        | {"events": [event for event in scenario.events if (event.at_s or max(event.between or [0])) < PICTURED_S]}
    )
    with tempfile.TemporaryDirectory() as folder:
        run_dir = run_folder.create(Path(folder) / "run", short)
        run_simulated(short, run_dir)
        return timelines(read_run(run_dir))[0].png


def shortened(arrivals: AnyArrivals) -> AnyArrivals:
    """The same arrival process, for a minute at most; traces stay as they are."""
    if arrivals.kind == "synchronized":
        return arrivals.model_copy(update={"rounds": min(arrivals.rounds, max(1, int(PICTURED_S / arrivals.period_s)))})
    if arrivals.kind == "trace":
        return arrivals
    return arrivals.model_copy(update={"duration_s": min(arrivals.duration_s, PICTURED_S)})


if __name__ == "__main__":
    for name, content in pages().items():
        path = Path(sys.argv[1]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
