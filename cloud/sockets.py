"""Accepting connections, and closing a socket that an asyncio loop may still be waiting on."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

Accept = Callable[[], Awaitable[socket.socket]]
"""Gives the next connection that has come. Raises OSError: out of descriptors, or the peer has closed already."""


def accepting(listener: socket.socket) -> Accept:
    """What comes to a listening, non-blocking socket."""

    async def accept() -> socket.socket:
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        return sock

    return accept


def close_socket(sock: socket.socket) -> None:
    """Deregister `sock` from the running loop, then close it.

    Closing alone would leave the loop's selector with a descriptor that the next socket reuses, and the late clean-up
    of a cancelled wait would then deregister that innocent one.
    """
    if sock.fileno() >= 0:
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock)
        loop.remove_writer(sock)
        sock.close()
