"""Agents that hedge, over links that may be slow: what they count, credit and leave behind."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from agents.agent import AgentSettings
from agents.arrivals import Arrival
from agents.edge import ProfileEdge, SyntheticPayload
from agents.host import AgentHost, Seat
from agents.offer import Offer
from agents.record import Record, Status
from agents.uplink import SocketUplink
from allocator.online.service import Allocator, Rules
from allocator.policies import make_policy
from allocator.problem import AgentInfo
from cloud.dispatch import LeastLoaded
from cloud.frames import Header, Kind, frame_bytes
from cloud.runtime import ProfileCloud
from cloud.worker import Worker
from models.clock import now_s
from netem.wire import wire_bytes
from tests.support import workers
from tests.support.virtual import PatientLoop
from tests.support.workers import CACHE_BYTES, FreeLink
from tests.support.workers import HEDGED_PROFILE as PROFILE

EVENT_LOOP = PatientLoop  # virtual time: a busy machine makes nothing late
Serving = tuple[Worker, tuple[str, int]]
FULL, PROMPT = PROFILE.modes
HEDGE_S = 0.050


def serving() -> AbstractAsyncContextManager[Serving]:
    return workers.serving(Worker(ProfileCloud([PROFILE]), 8), CACHE_BYTES)


class Relay:
    """A slow link: carries `bytes_per_s` towards the worker, and what comes back at once."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.bytes_per_s = math.inf
        self.carried = 0
        self._upstream = upstream
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._listener.setblocking(False)
        self.address = self._listener.getsockname()
        self._tasks = [asyncio.create_task(self._accept())]

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            below, _ = await loop.sock_accept(self._listener)
            above = socket.socket()
            above.setblocking(False)
            await loop.sock_connect(above, self._upstream)
            self._tasks += [
                asyncio.create_task(self._carry(below, above, True)),
                asyncio.create_task(self._carry(above, below, False)),
            ]

    async def _carry(self, source: socket.socket, to: socket.socket, slow: bool) -> None:
        loop = asyncio.get_running_loop()
        with source:
            while data := await loop.sock_recv(source, 2048):
                if slow:
                    self.carried += len(data)
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                await loop.sock_sendall(to, data)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._listener.close()


class Doubtful:
    """Believes that the uplink carries 50 Mbit/s, or hardly anything."""

    def report(self, mbps: float) -> None: ...

    def peek(self, mbps: float) -> None: ...

    def estimate(self) -> float:
        return 50.0

    def spread(self, intervals: float = 1.0) -> Sequence[float]:
        return [0.5, 50.0, 50.0, 50.0]


class Rig:
    """One agent that hedges, one worker, a link that may be slow."""

    def __init__(self, relay: Relay, deadline_ms: float) -> None:
        self.relay = relay
        self.connections = 0
        self.records: list[Record] = []
        self.write = self.records.append
        offer = Offer(PROFILE, tuple(PROFILE.modes))
        settings = AgentSettings(
            agent_id=0,
            offer=offer,
            model=0,
            options=offer.options(),
            deadline_ms=deadline_ms,
            timeout_ms=10 * deadline_ms,
            backlog_limit=8,
        )
        self.uplink = SocketUplink(self.connect)
        self.host = AgentHost([Seat(settings, ProfileEdge(offer), self.uplink)])
        self.dispatcher = LeastLoaded(1)
        policy = make_policy("static_full")
        self.allocator = Allocator(
            [AgentInfo(0, 1)], policy, Doubtful(), self.dispatcher, FreeLink(), Rules(hedge=True)
        )

    def issue(self, arrival: Arrival) -> None: ...

    async def connect(self, worker: int) -> socket.socket:
        self.connections += 1
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.relay.address)
        return sock

    async def play(self, *times_s: float) -> list[Record]:
        self.records.clear()
        arrivals = [Arrival(number, 0, at_s, -1) for number, at_s in enumerate(times_s)]
        await self.allocator.report(50)
        await self.host.run(arrivals, self.allocator, self, now_s() + 0.01)
        assert self.dispatcher.free_in_ms() == (0,)
        return sorted(self.records, key=lambda record: record.request_id)


@asynccontextmanager
async def rig(deadline_ms: float = 600) -> AsyncIterator[tuple[Rig, Worker]]:
    async with serving() as (worker, address):
        relay = Relay(address)
        made = Rig(relay, deadline_ms)
        try:
            yield made, worker
        finally:
            made.uplink.close()
            await relay.close()


async def test_an_agent_on_a_good_link_is_answered_from_its_cache() -> None:
    async with rig() as (r, worker):
        (record,) = await r.play(0)
        assert (record.status, record.mode, record.hedge, record.answered) == (Status.MET, FULL, PROMPT, FULL)
        assert record.quality_delivered == 100
        assert record.payload_bytes == CACHE_BYTES + 50
        assert record.wire_bytes == wire_bytes(frame_bytes(CACHE_BYTES)) + wire_bytes(frame_bytes(50))
        assert worker.counts == {"served": 1, "hedges_held": 1}


async def test_an_agent_on_a_bad_link_is_answered_from_its_hedge_and_goes_on() -> None:
    async with rig() as (r, worker):
        r.relay.bytes_per_s = 100_000  # 2 s for the cache
        (record,) = await r.play(0)
        assert (record.mode, record.hedge, record.answered) == (FULL, PROMPT, PROMPT)
        assert record.quality_credited == 80
        assert 50 < record.payload_bytes < CACHE_BYTES, "the rest stayed where it was"
        assert record.cloud_prefill_ms >= 20 and record.decode_ms >= 30
        assert record.transfer_ms <= record.latency_ms
        sent_bytes = record.payload_bytes
        r.relay.bytes_per_s = math.inf
        (record,) = await r.play(0)
        assert (record.status, record.answered) == (Status.MET, FULL)
        assert r.relay.carried == pytest.approx(sent_bytes + record.payload_bytes, abs=500), (
            "and a few frames' overhead"
        )
        assert r.connections == 1, "a withdrawn rest doesn't cost the connection"
        assert worker.counts == {"served": 2, "hedges_held": 2, "hedges_served": 1, "withdrawn": 1}


async def test_an_answer_counts_from_when_it_is_there_however_slow_the_link() -> None:
    async with rig() as (r, _):
        r.relay.bytes_per_s = 30_000
        (record,) = await r.play(0)
        assert record.answered == PROMPT and record.latency_ms < 600


async def test_an_agent_that_times_out_leaves_no_hedge_behind() -> None:
    async with rig(deadline_ms=5000) as (r, worker):
        r.relay.bytes_per_s = 20_000
        run = asyncio.create_task(r.play(0))
        await asyncio.sleep(0.2)
        assert worker.counts == {"hedges_held": 1}
        r.host.stop("interrupted")
        with pytest.raises(asyncio.CancelledError):
            await run
        assert [record.reason for record in r.records] == ["interrupted"]
        r.relay.bytes_per_s = math.inf
        (record,) = await r.play(0)
        assert (record.status, record.answered, r.connections) == (Status.MET, FULL, 2)
        assert worker.counts["hedges_served"] == 0


async def test_a_stopped_request_is_withdrawn_and_the_connection_goes_on() -> None:
    async with rig() as (r, worker):
        r.relay.bytes_per_s = 100_000  # 2 s for the cache
        stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        header = Header(Kind.REQUEST, 0, CACHE_BYTES)
        sending = asyncio.create_task(r.uplink.send(0, header, SyntheticPayload(CACHE_BYTES), stop=stop))
        await asyncio.sleep(0.2)
        stop.set_result(None)
        delivery = await sending
        assert not delivery.receipt.done() and delivery.sent_bytes < CACHE_BYTES
        r.relay.bytes_per_s = math.inf
        (record,) = await r.play(0)
        assert (record.status, record.answered, r.connections) == (Status.MET, FULL, 1)
        assert worker.counts == {"served": 1, "hedges_held": 1, "withdrawn": 1}
