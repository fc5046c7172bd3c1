"""Files of JSON lines, which one process appends to while others read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK_BYTES = 2**20


def append(path: Path, entry: Any) -> None:
    """Write one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


class Tail:
    """Reads a growing file, each line once. A last line that isn't whole yet is left for the next call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def lines(self) -> Iterator[bytes]:
        """Whole lines since the last call; none where the file doesn't exist (yet, or any more)."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                begun = b""  # the start of a line that goes on in the next chunk
                while chunk := file.read(CHUNK_BYTES):
                    whole, newline, begun = (begun + chunk).rpartition(b"\n")
                    self._offset += len(whole) + len(newline)
                    yield from whole.splitlines()
        except FileNotFoundError:
            return

    def objects(self) -> Iterator[dict[str, Any]]:
        """The JSON objects among the lines. Other lines are skipped: a kill may cut one off in the middle."""
        for line in self.lines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry
