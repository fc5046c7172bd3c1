"""What a process on another node has of the link: its agents' connections, its worker's place, the station's clock."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from netem.link import SEND_BUFFER_BYTES
from netem.relay import protocol
from netem.relay.protocol import ANY, Hello, RelayRefused, Role
from netem.relay.server import exactly, receive_timed, send, send_many

CONNECT_S = 5.0
ANSWER_S = 15.0
STANDBY = 4
AGAIN_S = (0.1, 0.3, 1.0)  # pauses before a worker tries again to reach the relay
CLOSED = "the relay closed the connection: another run's token, or too many connections at once"


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """Where a run's relay is, and what lets one in."""

    host: str
    port: int
    token: bytes = field(repr=False)

    async def dial(self, hello: Hello) -> socket.socket:
        """A connection that the relay has accepted. Raises OSError (RelayRefused is one)."""
        sock = socket.socket(_family(self.host), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What isn't sent yet is bounded; the window grows with the network's delay.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, SEND_BUFFER_BYTES)
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().sock_connect(sock, (self.host, self.port))
            async with asyncio.timeout(ANSWER_S):
                await send(sock, hello.pack(self.token))
                await _accepted(sock)
        except TimeoutError:
            sock.close()
            raise RelayRefused(f"the relay at {self.host}:{self.port} doesn't answer") from None
        except BaseException:
            sock.close()
            raise
        return sock

    async def connect(self, agent: int, worker: int) -> socket.socket:
        """As `netem.helper.client.LinkClient.connect`, by way of the relay. Raises OSError."""
        return await self.dial(Hello(Role.AGENT, worker, agent))

    async def status(self) -> dict[str, Any]:
        """`counts` (see `Relay`) and `reports`: the last one of each station connection. Raises OSError."""
        sock = await self.dial(Hello(Role.STATUS))
        try:
            async with asyncio.timeout(ANSWER_S):
                (size,) = protocol.LENGTH.unpack(await exactly(sock, protocol.LENGTH.size))
                if size > protocol.MAX_STATUS_BYTES:
                    raise RelayRefused(f"a status of {size} bytes")
                return json.loads(await exactly(sock, size))
        except (EOFError, TimeoutError):
            raise RelayRefused(CLOSED) from None
        finally:
            sock.close()


async def _accepted(sock: socket.socket) -> None:
    """Raises RelayRefused."""
    try:
        if await exactly(sock, 1) == protocol.OK:
            return
        (size,) = protocol.REASON.unpack(await exactly(sock, protocol.REASON.size))
        reason = (await exactly(sock, size)).decode("ascii", "replace")
    except EOFError:
        raise RelayRefused(CLOSED) from None
    raise RelayRefused(reason)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class Standing:
    """A worker's place in the emulated cloud: connections that come there arrive here.

    Some connections to the relay stand by, and each becomes one from an agent. Lost ones are opened again.
    """

    def __init__(self, relay: RelayAddress, worker: int) -> None:
        self._relay = relay
        self._hello = Hello(Role.WORKER, worker)
        self._come: asyncio.Queue[socket.socket] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """The place is taken on return. Raises OSError: the relay can't be reached, or refuses."""
        first = await self._relay.dial(self._hello)
        self._tasks = [asyncio.create_task(self._stand(first if not n else None)) for n in range(STANDBY)]

    async def accept(self) -> socket.socket:
        """The next connection."""
        return await self._come.get()

    def close(self) -> None:
        """Stand by no more."""
        for task in self._tasks:
            task.cancel()

    async def _stand(self, sock: socket.socket | None) -> None:
        failed = 0
        while True:
            try:
                sock = sock or await self._relay.dial(self._hello)
                begun = await exactly(sock, 1)
                if begun == protocol.GO:
                    self._come.put_nowait(sock)
                    sock, failed = None, 0
                    continue
            except (OSError, EOFError):
                pass
            finally:
                if sock is not None:
                    sock.close()
                    sock = None
            await asyncio.sleep(AGAIN_S[min(failed, len(AGAIN_S) - 1)])
            failed += 1


class ClockSample(NamedTuple):
    """The station's clock minus this node's CLOCK_MONOTONIC, known within half of the round trip."""

    offset_s: float
    round_trip_s: float


class StationLink:
    """One connection of a process to the station: for the clock, for the speed of the network between, for reports.

    Every method raises OSError or EOFError once the connection is lost; concurrent calls are serialized.

    Args:
        worker, agent: whose process it is: a worker's number, or the first agent of a host.
    """

    def __init__(self, relay: RelayAddress, worker: int = ANY, agent: int = 0) -> None:
        self._relay = relay
        self._hello = Hello(Role.STATION, worker, agent)
        self._sock: socket.socket | None = None
        self._lock = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether `open` has succeeded, and `close` has not been called since."""
        return self._sock is not None

    async def open(self) -> None:
        """Connect, again if it was before. Raises OSError."""
        self.close()
        self._sock = await self._relay.dial(self._hello)

    async def clock(self, pings: int, local_s: Callable[[], float] = time.monotonic) -> ClockSample:
        """Ask for the time so often, and believe the answer that came back the fastest."""
        best = ClockSample(0.0, float("inf"))
        async with self._use() as sock:
            for _ in range(pings):
                sent_s = local_s()
                await send(sock, b"t")
                (station_s,) = protocol.CLOCK.unpack(await exactly(sock, protocol.CLOCK.size))
                round_trip_s = local_s() - sent_s
                if round_trip_s < best.round_trip_s:
                    best = ClockSample(station_s - sent_s - round_trip_s / 2, round_trip_s)
        return best

    async def up_mbps(self, size: int) -> float:
        """How fast the network brings so many bytes to the station, Mbit/s of what TCP carries."""
        async with self._use() as sock:
            await send(sock, b"u" + protocol.LENGTH.pack(size))
            await send_many(sock, size, bytearray(protocol.LARGEST_PIECE))
            return _mbps(*protocol.RATE.unpack(await exactly(sock, protocol.RATE.size)))

    async def down_mbps(self, size: int) -> float:
        """The same from the station to here."""
        async with self._use() as sock:
            await send(sock, b"d" + protocol.LENGTH.pack(size))
            return _mbps(*await receive_timed(sock, size, bytearray(protocol.LARGEST_PIECE)))

    async def report(self, document: dict[str, Any]) -> None:
        """What the station shall know of this process; replaces the last report."""
        text = json.dumps(document).encode()
        async with self._use() as sock:
            await send(sock, b"r" + protocol.LENGTH.pack(len(text)) + text)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    @asynccontextmanager
    async def _use(self) -> AsyncIterator[socket.socket]:
        """The connection, for one caller and a bounded time."""
        if self._sock is None:
            raise RelayRefused("not connected to the station")
        try:
            async with self._lock, asyncio.timeout(ANSWER_S):
                yield self._sock
        except TimeoutError:
            raise RelayRefused(f"the station doesn't answer within {ANSWER_S:g} s") from None


def _mbps(size: float, seconds: float) -> float:
    """Infinite where all came at once: then the network was faster than its reader."""
    return size * 8 / 1e6 / seconds if size and seconds > 0 else float("inf")
