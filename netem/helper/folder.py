"""Temporary folders for Unix sockets, whose paths the kernel limits to 107 bytes, however long TMPDIR is."""

import os
import tempfile
from collections.abc import Sequence

MAX_PATH_BYTES = 107
RANDOM = 8  # characters that mkdtemp adds
OTHERS = ("/tmp", "/var/tmp", "/dev/shm")


class NoSocketFolder(OSError):
    """Every folder for temporary files has too long a name, or can't be written."""


def socket_folder(prefix: str, room: int, others: Sequence[str] = OTHERS) -> str:
    """Make a folder of mode 0700 in which a socket's path may have `room` more bytes.

    It is where Python puts temporary files (TMPDIR) if that is short enough, else in another usual place.

    Raises:
        NoSocketFolder: the message names TMPDIR and the length that it may have.
    """
    longest = MAX_PATH_BYTES - room - len(prefix) - RANDOM - 1
    given = tempfile.gettempdir()
    for parent in dict.fromkeys((given, *others)):
        if len(os.fsencode(parent)) <= longest:
            try:
                return tempfile.mkdtemp(prefix=prefix, dir=parent)
            except OSError:
                continue
    raise NoSocketFolder(
        f"sockets need a folder for temporary files whose name has at most {longest} bytes; TMPDIR is {given}, and "
        f"none of {', '.join(others)} can be written: set TMPDIR to a shorter one"
    )
