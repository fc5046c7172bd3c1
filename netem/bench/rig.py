"""The bench's rig: a link, a sending process, this receiving process, and the timing between them."""

import asyncio
import json
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from netem.helper.client import LinkClient
from netem.helper.session import LinkSession

RECEIVE_BYTES = 1 << 18
STALLED_S = 30.0


@dataclass
class Reception:
    """The arrivals of one send: start and end by agent (monotonic clock, s), and every read in order."""

    starts_s: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    reads: list[tuple[float, int, int]] = field(default_factory=list)
    """(time in s, agent, bytes), in order."""

    def durations_s(self) -> list[float]:
        """Transfer time of each agent (s): from its first send to the arrival of its last byte."""
        return [end - start for start, end in zip(self.starts_s, self.ends_s, strict=True)]

    def received_bytes(self, from_s: float, until_s: float) -> list[int]:
        """Bytes of each agent that arrived in (from_s, until_s]."""
        totals = [0] * len(self.ends_s)
        for at_s, agent, count in self.reads:
            if from_s < at_s <= until_s:
                totals[agent] += count
        return totals


class Rig:
    """Warm connections from every agent of a session to one worker, in this process."""

    def __init__(self, session: LinkSession, agents: int) -> None:
        """Raises RuntimeError if the sending process doesn't start."""
        self.agents = agents
        self._buffer = bytearray(RECEIVE_BYTES)
        self._runner = asyncio.Runner()
        self._client = self._runner.run(LinkClient.open(session.socket_path))
        listener = self._runner.run(self._client.listen(0))
        self._sender = subprocess.Popen(
            [sys.executable, "-m", "netem.bench.sender", session.socket_path, str(agents)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self._connections: list[socket.socket] = []
        try:
            self._accept(listener)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the sending process and close the connections."""
        assert self._sender.stdin and self._sender.stdout
        self._sender.stdin.close()
        self._sender.terminate()
        self._sender.wait()
        self._sender.stdout.close()
        for connection in self._connections:
            connection.close()
        self._client.close()
        self._runner.close()

    def set_rates(self, channel_mbps: float, grant_mbps: float) -> None:
        """Set the channel, and the same grant for every agent (Mbit/s)."""
        self._runner.run(self._client.set_channel(channel_mbps))
        self._runner.run(self._client.set_grants(dict.fromkeys(range(self.agents), grant_mbps)))

    def set_channel(self, mbps: float) -> None:
        """Set the shared hop's rate (Mbit/s)."""
        self._runner.run(self._client.set_channel(mbps))

    def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        """Set the grants of some agents (Mbit/s)."""
        self._runner.run(self._client.set_grants(grants_mbps))

    def transfer(self, payload_bytes: int, schedule: Sequence[tuple[float, Callable[[], None]]] = ()) -> Reception:
        """Send `payload_bytes` from every agent at once and receive all of it.

        `schedule` = (seconds, call), in order: each call is made that long after the send command, while the transfer
        lasts. If nothing arrives for STALLED_S, raises LinkLost if the helper has ended, else RuntimeError.
        """
        assert self._sender.stdin and self._sender.stdout
        reception = Reception(ends_s=[0.0] * self.agents)
        left = [payload_bytes] * self.agents
        open_count = self.agents
        upcoming = deque(schedule)
        with selectors.DefaultSelector() as selector:
            for agent, connection in enumerate(self._connections):
                selector.register(connection, selectors.EVENT_READ, agent)
            self._sender.stdin.write(f"{payload_bytes}\n")
            self._sender.stdin.flush()
            began_s = heard_s = time.monotonic()
            while open_count:
                now_s = time.monotonic()
                if upcoming and now_s >= began_s + upcoming[0][0]:
                    upcoming.popleft()[1]()
                    continue
                wait_s = STALLED_S if not upcoming else began_s + upcoming[0][0] - now_s
                ready = selector.select(wait_s)
                if ready:
                    heard_s = time.monotonic()
                elif time.monotonic() - heard_s >= STALLED_S:
                    self._complain(sum(left))
                for key, _ in ready:
                    agent = key.data
                    count = self._connections[agent].recv_into(self._buffer)
                    if count == 0:
                        raise RuntimeError(f"agent {agent} hung up")
                    now_s = time.monotonic()
                    reception.reads.append((now_s, agent, count))
                    left[agent] -= count
                    if left[agent] == 0:
                        reception.ends_s[agent] = now_s
                        open_count -= 1
        reception.starts_s = json.loads(self._sender.stdout.readline())
        return reception

    def _complain(self, missing_bytes: int) -> NoReturn:
        counters = self._runner.run(self._client.counters())
        queued = sum(agent.hop2_backlog_bytes for agent in counters.agents)
        raise RuntimeError(
            f"nothing arrived for {STALLED_S:.0f} s; {missing_bytes} bytes are missing, {queued} wait for the channel"
        )

    def _accept(self, listener: socket.socket) -> None:
        """Accept every agent's connection; the sender makes them one after another, in the agents' order."""
        assert self._sender.stdout
        with listener:
            listener.settimeout(STALLED_S)
            for _ in range(self.agents):
                connection, _ = listener.accept()
                connection.setblocking(False)
                self._connections.append(connection)
        if self._sender.stdout.readline() != "ready\n":
            raise RuntimeError("the bench's sending process didn't start")
