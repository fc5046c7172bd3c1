"""Netlink requests that this project encodes itself, and netlink errors as the OSErrors that they are."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

from pyroute2.netlink import NLMSG_ERROR
from pyroute2.netlink.exceptions import NetlinkError

_KIND = struct.Struct("=4xH")
_ERROR = struct.Struct("=16xi")  # linux/netlink.h: a message header, then 0 or a negative errno


def open_socket() -> socket.socket:
    """A routing netlink socket of the current network namespace."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


def exchange(kernel: socket.socket, request: bytes | bytearray, action: str) -> None:
    """Send a request that asks for an acknowledgement and wait for it.

    Raises OSError, with `action` in its text, if the kernel refuses.
    """
    kernel.send(request)
    (code,) = _ERROR.unpack_from(kernel.recv(4096))
    if code:
        raise OSError(-code, f"{action}: {os.strerror(-code)}")


def ask(kernel: socket.socket, request: bytes, action: str) -> bytes:
    """Send a request whose answer is one message, and return that. Raises as `exchange` does."""
    kernel.send(request)
    answer = kernel.recv(16384)
    (kind,) = _KIND.unpack_from(answer)
    if kind == NLMSG_ERROR:
        (code,) = _ERROR.unpack_from(answer)
        raise OSError(-code, f"{action}: {os.strerror(-code)}")
    return answer


@contextlib.contextmanager
def errors_as_os_errors() -> Iterator[None]:
    """Turn pyroute2's NetlinkError into the OSError of the same errno."""
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error
