"""A fluid model of the uplink for virtual time: no packets, but the same two hops.

Each transfer flows at up to its agent's grant (hop 1); all together flow at up to the channel's rate, shared max-min
fairly (hop 2). Rates are piecewise constant, so a transfer's end time is exact until the next rate change.

One thing is kept of the packets: a grant that is raised acts from the sender's next frame on, for the wait before that
frame was set by the grant under which the last one left (an HTB class in debt; `sch_htb` has no way to shorten the
wait). At 0.5 Mbit/s that is up to 24 ms, in which a shared link stays idle whenever one sender is stopped for another.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agents.edge import Payload
from agents.uplink import ConnectionLost, Delivery, Hedge, Refused, Stop
from cloud.frames import CloudStages, Header, Kind, frame_bytes
from cloud.worker import Job, QueueFull
from cluster.simulated.processes import SimulatedWorker
from cluster.simulated.tcp_model import AgentPath, Window
from models.clock import now_s, sleep_ms
from netem.fairness import max_min_shares
from netem.link import CongestionControl
from netem.wire import FRAME_BYTES, wire_bytes

ROUNDING = 1 + 1e-9
SOON_S = 1e-6
NO_IMPAIRMENT = AgentPath()


class _Flow:
    """One agent's transfer in progress."""

    __slots__ = ("agent_id", "at_s", "bits", "bits_left", "done", "mbps", "raised_mbps", "raising", "timer", "window")

    def __init__(self, agent_id: int, bits: float, window: Window | None) -> None:
        self.agent_id = agent_id
        self.window = window
        self.bits = bits
        self.bits_left = bits
        self.mbps = 0.0
        self.at_s = now_s()
        self.timer: asyncio.TimerHandle | None = None
        self.raised_mbps = 0.0
        self.raising: asyncio.TimerHandle | None = None  # puts a higher grant in force
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set_rate(self, mbps: float) -> None:
        """Change the rate to `mbps` from now on."""
        if mbps == self.mbps:
            return
        self.progress()
        self.mbps = mbps
        if self.timer is not None:
            self.timer.cancel()
        if mbps > 0:
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(self.bits_left / (mbps * 1e6), self.finish)

    def carried_bits(self, at_s: float) -> float:
        """Bits carried until `at_s`, which must not precede the last rate change."""
        return min(self.bits, self.bits - self.bits_left + (at_s - self.at_s) * self.mbps * 1e6)

    def next_frame_s(self, frame_bits: float, grant_mbps: float) -> float:
        """How long the sender waits for its next frame under this grant."""
        return (-self.carried_bits(now_s()) % frame_bits) / (grant_mbps * 1e6)

    def progress(self) -> None:
        """Account for the bits carried until now."""
        at_s = now_s()
        self.bits_left = max(0.0, self.bits_left - (at_s - self.at_s) * self.mbps * 1e6)
        self.at_s = at_s

    def finish(self) -> None:
        self.bits_left = 0.0
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        self.progress()
        if not self.done.done():
            self.done.set_exception(error)


class FluidLink:
    """All agents' links and their shared hop.

    Args:
        channel_mbps: true rate of the shared hop (link-layer Mbit/s).
        grant_mbps: grant of each agent until `set_grants`.
        frame_bytes: frames that senders wait for.
    """

    def __init__(self, channel_mbps: float, grant_mbps: float, frame_bytes: float = FRAME_BYTES) -> None:
        self._channel_mbps = channel_mbps
        self._frame_bits = frame_bytes * 8
        self._first_grant_mbps = grant_mbps
        self._grants_mbps: dict[int, float] = {}
        self._flows: dict[int, _Flow] = {}
        self._cut: set[int] = set()
        self._limits_sum_mbps = 0.0
        self._saturated = False
        self._carried_bits = 0.0  # of flows that have ended

    def used_bytes(self) -> float:
        """Wire bytes carried so far. Reading has no side effect, so observing a run doesn't change it."""
        at_s = now_s()
        return (self._carried_bits + sum(flow.carried_bits(at_s) for flow in self._flows.values())) / 8

    def set_channel(self, mbps: float) -> None:
        """Change the shared hop's true rate (link-layer Mbit/s)."""
        self._channel_mbps = mbps
        self._share()

    async def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        """Set these agents' grants (link-layer Mbit/s); the others keep theirs.

        The higher grant of an agent that sends is in force from its next frame on.
        """
        changed = []
        for agent_id, mbps in grants_mbps.items():
            flow = self._flows.get(agent_id)
            if flow is None:
                self._grants_mbps[agent_id] = mbps
                continue
            if flow.raising is not None:
                flow.raising.cancel()
                flow.raising = None
            before_mbps = self._grant_mbps(agent_id)
            wait_s = flow.next_frame_s(self._frame_bits, before_mbps) if 0 < before_mbps < mbps else 0.0
            if wait_s > SOON_S:
                flow.raised_mbps = mbps
                flow.raising = asyncio.get_running_loop().call_later(wait_s, self._raise, flow)
            else:
                self._put_in_force(flow, mbps)
                changed.append(flow)
        if changed:
            self._share(changed)

    def _raise(self, flow: _Flow) -> None:
        flow.raising = None
        self._put_in_force(flow, flow.raised_mbps)
        self._share([flow])

    def _put_in_force(self, flow: _Flow, mbps: float) -> None:
        self._limits_sum_mbps -= self._limit_mbps(flow)
        self._grants_mbps[flow.agent_id] = mbps
        self._limits_sum_mbps += self._limit_mbps(flow)

    def set_connected(self, agent_id: int, connected: bool) -> None:
        """Let an agent's link carry, or nothing through it."""
        flow = self._flows.get(agent_id)
        if flow is not None:
            self._limits_sum_mbps -= self._limit_mbps(flow)
        (self._cut.discard if connected else self._cut.add)(agent_id)
        if flow is not None:
            self._limits_sum_mbps += self._limit_mbps(flow)
            self._share([flow])

    def abort(self, agent_id: int, error: Exception) -> None:
        """Have `carry` of an agent raise this error."""
        self._flows[agent_id].fail(error)

    async def carry(
        self,
        agent_id: int,
        size_bytes: float,
        until: "asyncio.Future[Any] | None" = None,
        window: Window | None = None,
    ) -> float:
        """Carry `size_bytes` wire bytes of an agent; returns the bytes carried: all, unless `until` is done first.

        An agent has at most one call in progress. Raises the error that it is aborted with.

        Args:
            window: the connection's congestion window, if its path has delay or loss.
        """
        flow = _Flow(agent_id, size_bytes * 8, window)
        self._flows[agent_id] = flow
        self._limits_sum_mbps += self._limit_mbps(flow)
        self._share([flow])
        growing = asyncio.create_task(self._grow(flow, window)) if window is not None and window.grows else None
        try:
            if until is None:
                await flow.done
            else:
                await asyncio.wait((flow.done, until), return_when=asyncio.FIRST_COMPLETED)
                flow.progress()
                if flow.done.done():
                    flow.done.result()
        finally:
            if growing is not None:
                growing.cancel()
            if flow.timer is not None:
                flow.timer.cancel()
            self._carried_bits += flow.carried_bits(now_s())
            self._limits_sum_mbps -= self._limit_mbps(flow)
            del self._flows[agent_id]
            if flow.raising is not None:
                flow.raising.cancel()
                self._grants_mbps[agent_id] = flow.raised_mbps
            if not self._flows:
                self._limits_sum_mbps = 0.0  # rounding errors of the running sum accumulate
            self._share(())
        return size_bytes - flow.bits_left / 8

    async def _grow(self, flow: _Flow, window: Window) -> None:
        """Grow the window once each round trip."""
        while window.grows:
            await sleep_ms(window.path.rtt_s * 1e3)
            self._limits_sum_mbps -= self._limit_mbps(flow)
            window.grow(flow.mbps)
            self._limits_sum_mbps += self._limit_mbps(flow)
            self._share([flow])

    def _limit_mbps(self, flow: _Flow) -> float:
        """The flow's own rate limit: its grant, or its window if that is lower; 0 while its link is cut."""
        if flow.agent_id in self._cut:
            return 0.0
        grant_mbps = self._grant_mbps(flow.agent_id)
        return grant_mbps if flow.window is None else min(grant_mbps, flow.window.mbps)

    def _grant_mbps(self, agent_id: int) -> float:
        return self._grants_mbps.get(agent_id, self._first_grant_mbps)

    def _share(self, changed: Sequence[_Flow] | None = None) -> None:
        """Recompute rates: of the changed flows (default: all) if the channel covers all limits, else of all flows."""
        if self._limits_sum_mbps <= self._channel_mbps * ROUNDING:
            flows = self._flows.values() if changed is None or self._saturated else changed
            for flow in flows:
                flow.set_rate(self._limit_mbps(flow))
            self._saturated = False
            return
        self._saturated = True
        flows = list(self._flows.values())
        shares = max_min_shares(self._channel_mbps, [self._limit_mbps(flow) for flow in flows])
        for flow, mbps in zip(flows, shares, strict=True):
            flow.set_rate(mbps)


class FluidUplink:
    """One agent's end of a fluid link.

    Args:
        path: the path's delay and loss.
        warm: whether connections, one to each worker, outlast a request.
    """

    def __init__(
        self,
        agent_id: int,
        link: FluidLink,
        workers: Sequence[SimulatedWorker],
        path: AgentPath = NO_IMPAIRMENT,
        congestion: CongestionControl = "reno",
        warm: bool = True,
    ) -> None:
        self._agent_id = agent_id
        self._link = link
        self._workers = workers
        self._path = path
        self._congestion: CongestionControl = congestion
        self._warm = warm
        self._windows: dict[int, Window] = {}
        self._stalls: set[str] = set()
        self._held_back: list[tuple[asyncio.Future[CloudStages], CloudStages]] = []
        self._requests: dict[object, Callable[[ConnectionLost], None]] = {}  # what to tell those that have no answer

    def stall(self, cause: str) -> None:
        """Nothing goes up or comes down any more."""
        self._stalls.add(cause)
        self._link.set_connected(self._agent_id, False)

    def resume(self, cause: str) -> None:
        """Everything goes on if there is no other cause for the stall."""
        self._stalls.discard(cause)
        if not self._stalls:
            self._link.set_connected(self._agent_id, True)
            held_back, self._held_back = self._held_back, []
            for future, stages in held_back:
                self._settle(future, stages)

    def close(self, reason: str) -> None:
        """See `agents.uplink.Uplink`."""
        for lose in list(self._requests.values()):
            lose(ConnectionLost(reason))

    async def send(
        self, worker: int, header: Header, payload: Payload, hedge: Hedge | None = None, stop: Stop = None
    ) -> Delivery:
        """See `agents.uplink.Uplink`."""
        loop = asyncio.get_running_loop()
        to = self._workers[worker]
        delivery = Delivery(loop.create_future(), loop.create_future())
        key, up_ms = object(), self._path.up_s * 1e3
        window, sending = await self._connect(worker, delivery), True

        def end() -> None:
            self._requests.pop(key, None)
            to.disconnect(key)

        def lose(error: ConnectionLost) -> None:
            end()
            _fail(delivery, error)
            if sending:
                self._link.abort(self._agent_id, error)

        async def reply(kind: Kind, header: Header, stages: CloudStages) -> None:
            if kind not in (Kind.RECEIPT, Kind.FIRST_TOKEN):
                end()
            self._take(delivery, kind, stages)

        began_s = now_s()
        to.connect(key, lose)
        self._requests[key] = lose
        try:
            if hedge is not None:
                if not await self._carry_whole(hedge.payload.size, stop, window):
                    end()
                    return delivery
                to.hold(Job(key, hedge.header(header), now_s(), reply, first_byte_s=began_s))
                began_s = now_s()
            size_bytes = wire_bytes(frame_bytes(payload.size))
            carried_bytes = await self._carry(size_bytes, _first_of(delivery.receipt if hedge else None, stop), window)
            sending = False
            if up_ms:
                await sleep_ms(up_ms)
        except asyncio.CancelledError:
            end()
            to.withdraw(key)
            raise
        if carried_bytes < size_bytes:
            to.withdraw(key)
            if stop is not None and stop.done():
                end()
            delivery.sent_bytes = int(payload.size * carried_bytes / size_bytes)
            return delivery
        delivery.sent_bytes = payload.size
        if delivery.answer.done() and delivery.answer.exception() is not None:  # the connection was lost on the way
            return delivery
        began_s += self._path.up_s
        try:
            await to.submit(Job(key, header, now_s(), reply, first_byte_s=began_s))
        except QueueFull:
            end()
            _fail(delivery, Refused("queue_full"))
        return delivery

    async def _connect(self, worker: int, delivery: Delivery) -> Window | None:
        """The window of the connection to a worker; opening a new connection takes a round trip."""
        if not self._path.impaired:
            return None
        if self._warm:
            return self._windows.setdefault(worker, Window(self._path, self._congestion))
        delivery.handshake_ms = (self._path.up_s + self._path.down_s) * 1e3
        await sleep_ms(delivery.handshake_ms)
        return Window(self._path, self._congestion)

    async def _carry(self, size_bytes: float, until: "asyncio.Future[Any] | None", window: Window | None) -> float:
        """As `FluidLink.carry`, with lost bytes retransmitted."""
        again = 1 / (1 - self._path.loss)
        return await self._link.carry(self._agent_id, size_bytes * again, until, window) / again

    def _take(self, delivery: Delivery, kind: Kind, stages: CloudStages) -> None:
        """A worker's reply to a request."""
        if kind is Kind.REFUSAL:
            _fail(delivery, Refused(stages.text))
        elif kind is Kind.FIRST_TOKEN:
            first: asyncio.Future[CloudStages] = asyncio.get_running_loop().create_future()
            first.add_done_callback(lambda _: setattr(delivery, "first_token_s", now_s()))
            self._comes(first, stages)
        else:
            self._comes(delivery.receipt if kind is Kind.RECEIPT else delivery.answer, stages)

    def _comes(self, future: "asyncio.Future[CloudStages]", stages: CloudStages) -> None:
        """A reply comes down, after the path's delay."""
        if self._path.down_s:
            asyncio.get_running_loop().call_later(self._path.down_s, self._settle, future, stages)
        else:
            self._settle(future, stages)

    async def _carry_whole(self, size: int, stop: Stop, window: Window | None) -> bool:
        """Carry a frame with a payload of `size` bytes; whether it was carried before `stop` was done."""
        size_bytes = wire_bytes(frame_bytes(size))
        return await self._carry(size_bytes, stop, window) >= size_bytes

    def _settle(self, future: "asyncio.Future[CloudStages]", stages: CloudStages) -> None:
        if self._stalls:
            self._held_back.append((future, stages))
        elif not future.done():
            future.set_result(stages)


def _first_of(one: "asyncio.Future[Any] | None", other: "asyncio.Future[Any] | None") -> "asyncio.Future[Any] | None":
    """Done when one of them is; None if there is none."""
    if one is None or other is None:
        return one or other
    first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for each in (one, other):
        each.add_done_callback(lambda _: None if first.done() else first.set_result(None))
    return first


def _fail(delivery: Delivery, error: Exception) -> None:
    for future in (delivery.receipt, delivery.answer):
        if not future.done():
            future.set_exception(error)
            future.exception()  # seen: a request that has given up doesn't await it any more
