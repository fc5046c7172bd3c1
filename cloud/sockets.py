"""Closing a socket that an asyncio loop may still be waiting on."""

import asyncio
import socket


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
