"""The sending side of the bench, in its own process so that it doesn't slow down the receiving one.

Connects agents 0..N-1 to worker 0 and prints `ready`. Then it reads payload sizes (bytes) from standard input, one a
line, sends that many bytes from every agent at once, and prints a JSON list with each agent's time (monotonic clock, s)
just before its first send. It ends at the end of its input.
"""

import asyncio
import json
import selectors
import socket
import sys
import time

from netem.helper.client import LinkClient


async def _connect(socket_path: str, agents: int) -> list[socket.socket]:
    async with await LinkClient.open(socket_path) as client:
        return [await client.connect(agent, 0) for agent in range(agents)]


def _send(connections: list[socket.socket], payload_bytes: int) -> list[float]:
    payload = memoryview(bytes(payload_bytes))
    starts_s = []
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            starts_s.append(time.monotonic())
            sent = connection.send(payload)
            if sent < payload_bytes:
                selector.register(connection, selectors.EVENT_WRITE, (connection, payload[sent:]))
        while selector.get_map():
            for key, _ in selector.select():
                waiting, rest = key.data
                rest = rest[waiting.send(rest) :]
                if rest:
                    selector.modify(waiting, selectors.EVENT_WRITE, (waiting, rest))
                else:
                    selector.unregister(waiting)
    return starts_s


def main() -> None:
    """Arguments: the helper's socket path, the number of agents."""
    connections = asyncio.run(_connect(sys.argv[1], int(sys.argv[2])))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_send(connections, int(line))), flush=True)


if __name__ == "__main__":
    main()
