"""The relay's process: `session.RelaySession` starts it; it is not meant to be run by hand.

It ends with its standard input, whose first line is the run's token in hexadecimal digits, and with the link. Its only
line on standard output says that it is ready: `{"ready": true, "port": 40123, "pid": 123}`, or why it isn't.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import sys

from netem.helper.client import LinkClient, LinkLost
from netem.relay.server import BACKLOG, BUFFER_BYTES, Relay

PATIENCE_S = 20.0  # with a helper that is being started again


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m netem.relay", description=__doc__)
    parser.add_argument("--socket", required=True, help="where the link's helper listens")
    parser.add_argument("--host", required=True, help="the address to listen at")
    parser.add_argument("--port", type=int, default=0, help="default: one that is free")
    parser.add_argument("--limit", type=int, required=True, help="the most connections at once")
    return parser.parse_args()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket whose connections have bounded buffers. Raises OSError."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # accepted sockets have the same
            listener.setsockopt(socket.SOL_SOCKET, buffer, BUFFER_BYTES)
        listener.bind((host, port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


async def _serve(arguments: argparse.Namespace, token: bytes) -> None:
    listener = listen(arguments.host, arguments.port)
    with listener:
        link = await LinkClient.open(arguments.socket, PATIENCE_S)
        await link.used_bytes()  # answered once the link is built
        relay = Relay(link, token, arguments.limit)
        serving = asyncio.create_task(relay.run(listener))
        lost = asyncio.create_task((await LinkClient.open(arguments.socket)).until_lost())
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
        ready = {"ready": True, "port": listener.getsockname()[1], "pid": os.getpid()}
        print(json.dumps(ready), flush=True)
        over = asyncio.create_task(ended.wait())
        await asyncio.wait([serving, lost, over], return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


def main() -> int:
    """Serve until standard input closes or the link is gone. Returns 1 if it can't."""
    arguments = _arguments()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the driver, which decides when to stop
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    token = bytes.fromhex(sys.stdin.buffer.readline().decode())
    try:
        asyncio.run(_serve(arguments, token))
    except LinkLost as error:
        print(json.dumps({"ready": False, "error": str(error)}), flush=True)
        return 1
    except OSError as error:
        where = f"{arguments.host}:{arguments.port}"
        print(json.dumps({"ready": False, "error": f"can't listen at {where}: {error.strerror}"}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
