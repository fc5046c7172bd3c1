"""The life of a request over real sockets, with a real worker and allocator; only Ray and shaping are absent."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agents.agent import AgentSettings, Terms
from agents.arrivals import Arrival
from agents.edge import ProfileEdge
from agents.estimators import Fixed
from agents.host import AgentHost, Seat
from agents.offer import Offer
from agents.record import STAGES, Record, Status
from agents.uplink import SocketUplink
from allocator.online.service import Allocator
from allocator.policies import make_policy
from allocator.problem import AgentInfo
from cloud.dispatch import LeastLoaded
from cloud.reception import Reception
from cloud.runtime import ProfileCloud
from cloud.sockets import accepting
from cloud.worker import Worker
from kvcache.modes import LOCAL, parse_mode
from models.profiles import ModelProfile
from tests.support.virtual import SocketLoop
from tests.support.workers import FreeLink

EVENT_LOOP = SocketLoop  # virtual time: a busy machine makes nothing late
FULL = parse_mode("full")
PROFILE = ModelProfile.model_validate(
    {
        "name": "test/fast",
        "kv_bytes": 200_000,
        "edge_prefill_ms": 10,
        "quality_basis": "none",
        "modes": {
            "full": {"payload_bytes": 200_000, "decode_ms": 50, "quality": 100},
            "local": {"payload_bytes": 0, "decode_ms": 20, "quality": 70},
        },
    }
)

OFFER = Offer(PROFILE, tuple(PROFILE.modes))


class Rig:
    """One agent and one worker."""

    def __init__(
        self,
        policy: str,
        deadline_ms: float,
        timeout_ms: float,
        backlog_limit: int,
        queue_limit: int,
        warm: bool,
        resend: bool,
    ) -> None:
        self.worker = Worker(ProfileCloud([PROFILE]), queue_limit)
        self.reception = Reception(self.worker, 200_000, 16)
        self.connections = 0
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.listener.setblocking(False)
        self.serving: asyncio.Task[None]
        self.issued: list[Arrival] = []
        self.records: list[Record] = []
        self.issue, self.write = self.issued.append, self.records.append
        settings = AgentSettings(
            agent_id=0,
            offer=OFFER,
            model=0,
            options=OFFER.options(),
            deadline_ms=deadline_ms,
            timeout_ms=timeout_ms,
            backlog_limit=backlog_limit,
            resend=resend,
        )
        self.uplink = SocketUplink(self.connect, warm)
        self.host = AgentHost([Seat(settings, ProfileEdge(OFFER), self.uplink)])
        self.allocator = Allocator([AgentInfo(0, 1)], make_policy(policy), Fixed(mbps=1000), LeastLoaded(1), FreeLink())

    async def connect(self, worker: int) -> socket.socket:
        self.connections += 1
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.listener.getsockname())
        return sock

    async def play(self, times_s: list[float], terms: Terms | None = None) -> list[Record]:
        """Run these arrivals; the records in order of request id."""
        arrivals = [Arrival(number, 0, at_s, -1) for number, at_s in enumerate(times_s)]
        epoch_s = asyncio.get_running_loop().time() + 0.01
        await self.host.run(arrivals, self.allocator, self, epoch_s, terms)
        assert self.issued == arrivals
        assert len(self.records) == len(arrivals), "one record for each request, always"
        return sorted(self.records, key=lambda record: record.request_id)


@asynccontextmanager
async def rig(
    policy: str = "static_full",
    deadline_ms: float = 1000,
    timeout_ms: float = 3000,
    backlog_limit: int = 8,
    queue_limit: int = 8,
    warm: bool = True,
    resend: bool = False,
) -> AsyncIterator[Rig]:
    made = Rig(policy, deadline_ms, timeout_ms, backlog_limit, queue_limit, warm, resend)
    made.serving = asyncio.create_task(made.reception.run(accepting(made.listener)))
    try:
        await made.uplink.open(1)
        yield made
    finally:
        made.serving.cancel()
        await asyncio.wait([made.serving])
        made.uplink.close()
        made.listener.close()


async def test_a_request_in_time() -> None:
    async with rig() as r:
        (record,) = await r.play([0.05])
    assert (record.status, record.mode, record.worker) == (Status.MET, FULL, 0)
    assert record.quality_credited == record.quality_delivered == 100
    assert record.payload_bytes == 200_000 and record.wire_bytes > 200_040
    assert (record.prefill_ms, record.decode_ms) == pytest.approx((10, 50), abs=0.1)
    stages = ("queue", "prefill", "uplink_wait", "allocate", "encode", "transfer", "cloud_queue", "cloud_prefill")
    total = sum(getattr(record, f"{stage}_ms") for stage in (*stages, "decode", "answer")) + record.lateness_ms
    assert total == pytest.approx(record.latency_ms, abs=0.1), "the stages add up to the latency"
    assert 0 <= record.lateness_ms < 0.1


async def test_a_late_answer_is_credited_but_delivers_nothing() -> None:
    async with rig(deadline_ms=30) as r:
        (record,) = await r.play([0])
    assert record.status is Status.LATE and record.latency_ms > 60
    assert (record.quality_credited, record.quality_delivered) == (100, 0)


async def test_local_stays_local() -> None:
    async with rig("static_local") as r:
        (record,) = await r.play([0])
    assert (record.status, record.mode, record.worker, record.wire_bytes) == (Status.MET, LOCAL, -1, 0)
    assert record.latency_ms == pytest.approx(30, abs=0.1) and record.quality_delivered == 70
    assert not r.worker.counts


async def test_an_agent_s_backlog_is_bounded() -> None:
    async with rig(backlog_limit=2) as r:
        records = await r.play([0, 0, 0, 0])
    assert [record.status for record in records] == [Status.MET] * 2 + [Status.REJECTED] * 2
    assert {record.reason for record in records[2:]} == {"backlog"}


async def test_a_full_cloud_queue_rejects() -> None:
    async with rig(queue_limit=1) as r:
        records = await r.play([0.0] * 6)
    rejected = [record for record in records if record.status is Status.REJECTED]
    assert rejected and {record.reason for record in rejected} == {"cloud: queue_full"}
    assert sum(record.quality_credited for record in rejected) == 0
    assert r.worker.counts["refused_queue_full"] == len(rejected)


async def test_a_timeout_in_mid_transfer_fails_and_the_connection_is_replaced() -> None:
    async with rig(timeout_ms=200) as r:
        r.serving.cancel()  # nobody reads: the payload sticks in the buffers
        await asyncio.wait([r.serving])
        first = asyncio.create_task(r.play([0]))
        await asyncio.sleep(0.25)
        (record,) = await first
        assert (record.status, record.reason) == (Status.FAILED, "no answer within 200 ms")
        assert math.isnan(record.latency_ms) and record.quality_credited == 0
        r.records.clear()
        r.issued.clear()
        r.serving = asyncio.create_task(r.reception.run(accepting(r.listener)))
        (record,) = await r.play([0])
        assert record.status is Status.MET
        assert r.connections == 3, "opened, broken by the worker, broken by the timeout"


async def test_a_lost_connection_fails_the_request_and_the_next_one_reconnects() -> None:
    async with rig() as r:

        async def cut() -> None:
            await asyncio.sleep(0.05)
            r.uplink._connections[0].close()

        cutting = asyncio.create_task(cut())
        records = await r.play([0, 0.2])
        await cutting
    assert records[0].status is Status.FAILED and "connection lost" in records[0].reason
    assert records[1].status is Status.MET and r.connections == 2


@pytest.mark.parametrize("at_s", [0.012, 0.05])
async def test_a_request_whose_connection_is_lost_is_sent_again_and_answered_once(at_s: float) -> None:
    """While it is sent, and while its answer is awaited."""
    async with rig(resend=True) as r:

        async def cut() -> None:
            await asyncio.sleep(0.01 + at_s)
            r.uplink.close("cut")

        cutting = asyncio.create_task(cut())
        (record,) = await r.play([0])
        await cutting
        assert not r.host.standing()
    assert record.status is Status.MET and r.connections == 2 and r.worker.counts["served"] == 1
    assert record.uplink_wait_ms >= 100, "until the last attempt began"
    assert sum(getattr(record, f"{stage}_ms") for stage in STAGES) == pytest.approx(record.latency_ms, abs=0.1)


async def test_it_is_not_sent_again_after_its_deadline() -> None:
    async with rig(resend=True, deadline_ms=300) as r:
        r.serving.cancel()
        await asyncio.wait([r.serving])
        r.listener.close()
        (record,) = await r.play([0])
    assert record.status is Status.FAILED and record.reason.startswith("connection lost: worker 0")


async def test_a_worker_that_hangs_up_in_mid_transfer_fails_the_request_at_once() -> None:
    async with rig() as r:
        r.serving.cancel()
        await asyncio.wait([r.serving])

        async def hang_up() -> None:
            sock, _ = await asyncio.get_running_loop().sock_accept(r.listener)
            await asyncio.sleep(0.1)
            sock.shutdown(socket.SHUT_RDWR)
            sock.close()

        hanging_up = asyncio.create_task(hang_up())
        (record,) = await asyncio.wait_for(r.play([0]), 1)
        await hanging_up
    assert record.status is Status.FAILED and "connection lost" in record.reason
    assert record.wire_bytes == 0, "what never arrived isn't counted as sent"


async def test_what_timed_out_can_t_answer_for_a_later_run() -> None:
    async with rig(timeout_ms=40) as r:
        (record,) = await r.play([0])
        assert record.reason == "no answer within 40 ms"
        r.records.clear()
        r.issued.clear()
        await asyncio.sleep(0.06)  # the answer to the first request arrives now, when nobody waits for it
        (record,) = await r.play([0])
        assert record.reason == "no answer within 40 ms", "request 0 again, with no answer of its own yet"


async def test_stopping_fails_what_is_in_flight_and_releases_nothing_more() -> None:
    async with rig() as r:
        arrivals = [Arrival(0, 0, 0.0, -1), Arrival(1, 0, 0.0, -1), Arrival(2, 0, 60.0, -1)]
        epoch_s = asyncio.get_running_loop().time()
        run = asyncio.create_task(r.host.run(arrivals, r.allocator, r, epoch_s))
        await asyncio.sleep(0.04)
        r.host.stop("interrupted")
        with pytest.raises(asyncio.CancelledError):
            await run
    assert [(record.status, record.reason) for record in r.records] == [(Status.FAILED, "interrupted")] * 2
    assert r.issued == arrivals[:2]


async def test_requests_of_one_agent_go_through_compute_and_uplink_in_order() -> None:
    async with rig() as r:
        records = await r.play([0, 0, 0])
    assert [record.queue_ms for record in records[1:]] == pytest.approx([10, 20], abs=0.1), "10 ms of prefill each"
    assert sorted(record.latency_ms for record in records) == [record.latency_ms for record in records]


async def test_warm_connections_are_opened_ahead_and_kept() -> None:
    async with rig() as r:
        records = await r.play([0, 0.1, 0.2])
        assert r.connections == 1
    assert all(record.handshake_ms == 0 and record.status is Status.MET for record in records)
    assert all(0 <= record.first_byte_ms <= record.transfer_ms for record in records)


async def test_a_connection_per_request_is_opened_timed_and_closed_with_its_answer() -> None:
    async with rig(warm=False) as r:
        assert r.connections == 0
        records = await r.play([0, 0.1, 0.1])
        assert r.connections == 3
        await asyncio.sleep(0.01)
        assert not r.uplink._passing and not r.reception._connections, "both ends have closed"
    assert all(record.status is Status.MET and record.handshake_ms > 0 for record in records)
    stages = sum(getattr(records[0], f"{name}_ms") for name in STAGES)
    assert stages == pytest.approx(records[0].latency_ms, abs=0.5), "the handshake is one of them"


async def test_a_request_that_gives_up_leaves_no_connection_behind() -> None:
    async with rig(warm=False, timeout_ms=40) as r:
        (record,) = await r.play([0])
        assert record.reason == "no answer within 40 ms"
        await asyncio.sleep(0.01)
        assert not r.uplink._passing
