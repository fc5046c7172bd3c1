"""Opens the files that users give: regular ones, of bounded size, in UTF-8; and reads tables of comma-separated values.

Every reader of such files goes through here, so that a device, a pipe or a file without end is refused by all of them.
"""

import codecs
import csv
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

MAX_LINES = 5_000_000
MAX_SHOWN = 60
OTHER_ENCODINGS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", codecs.BOM_UTF32_BE: "UTF-32"}
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class FileRefused(ValueError):
    """A file can't be read; `reason` says why, and the message says of which file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def check_file(path: Path, max_bytes: int) -> int:
    """The size in bytes of a regular file of at most `max_bytes`.

    Raises:
        FileNotFoundError: there is none.
        FileRefused: it is something else, too large, or out of reach.
    """
    if not is_unicode(str(path)):
        raise FileRefused(Path(ascii(str(path))), "the name isn't in UTF-8")
    try:
        status = path.stat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileRefused(path, error.strerror or str(error)) from None
    except ValueError as error:  # a NUL in its name
        raise FileRefused(Path(ascii(str(path))), f"not a file's name: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "not a file")
        raise FileRefused(path, f"is {kind}, where a regular file is needed")
    if status.st_size > max_bytes:
        raise FileRefused(path, _too_large(max_bytes))
    return status.st_size


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """A regular file's content. Raises as `check_file` does."""
    check_file(path, max_bytes)
    with _opened(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:  # as files in /proc do, which have no size
        raise FileRefused(path, _too_large(max_bytes))
    return content.removeprefix(codecs.BOM_UTF8)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, for reading; without waiting, for it may have become a pipe. Raises as `check_file` does."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileRefused(path, error.strerror or str(error)) from None


def _too_large(max_bytes: int) -> str:
    return f"larger than {max_bytes / 2**20:g} MiB"


def read_text(path: Path, max_bytes: int) -> str:
    """A regular file's text: UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        FileRefused: it isn't a regular file, is too large or out of reach, or isn't UTF-8.
    """
    content = read_bytes(path, max_bytes)
    for mark, name in OTHER_ENCODINGS.items():
        if content.startswith(mark):
            raise FileRefused(path, f"is not a text file in UTF-8, but in {name}; save it as UTF-8")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FileRefused(
            path, f"is not a text file in UTF-8: byte {content[error.start]:#04x} in line {line}"
        ) from None


def read_lines(path: Path, max_bytes: int) -> list[str]:
    """The lines of a text, as editors number them. Raises as `read_text` does, and for more than MAX_LINES."""
    text = read_text(path, max_bytes).replace("\r\n", "\n").replace("\r", "\n")
    if text.count("\n") > MAX_LINES:
        raise FileRefused(path, f"has more than {MAX_LINES:,} lines")
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def stream_lines(path: Path, max_bytes: int, max_line: int = 2**20) -> Iterator[str]:
    """The lines of a text one by one, without their ends, so that a large file takes no more memory than a small one.

    Raises:
        FileNotFoundError: there is no such file.
        FileRefused: as `read_text` does; for a line of more than `max_line` bytes, and for more than MAX_LINES.
    """
    check_file(path, max_bytes)
    with _opened(path) as file:
        number = 0
        while raw := file.readline(max_line + 1):
            number += 1
            if number == 1:
                for mark, name in OTHER_ENCODINGS.items():
                    if raw.startswith(mark):
                        raise FileRefused(path, f"is not a text file in UTF-8, but in {name}; save it as UTF-8")
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if len(raw) > max_line:
                raise FileRefused(path, f"line {number} has more than {max_line:,} bytes")
            if number > MAX_LINES:
                raise FileRefused(path, f"has more than {MAX_LINES:,} lines")
            try:
                yield raw.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                byte = f"byte {raw[error.start]:#04x} in line {number}"
                raise FileRefused(path, f"is not a text file in UTF-8: {byte}") from None


def table_rows(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of the comma-separated rows below the first line.

    Raises:
        TableError: a row that isn't one.
    """
    reader = csv.reader(lines[1:])
    while True:
        number = reader.line_num + 2
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise TableError(number, str(error)) from None
        yield number, [cell.strip() for cell in row]


class TableError(ValueError):
    """A line isn't a row of comma-separated values: its number, and why."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number}: {reason}")
        self.number, self.reason = number, reason


def has_header(lines: list[str], *names: str) -> bool:
    """Whether the first line has just these names."""
    return bool(lines) and [cell.strip().strip('"') for cell in lines[0].split(",")] == list(names)


def is_unicode(text: str) -> bool:
    """Whether a text has no halves of surrogate pairs, as names of files that aren't in UTF-8 do."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shortened(text: str) -> str:
    """A text from a file in a message: quoted, without control characters, not longer than a line."""
    shown = repr(text)
    return shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 3] + "..."
