"""An edge agent: the life of its requests, from release to ledger row."""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

from agents.arrivals import Arrival
from agents.edge import EdgeRuntime, Work
from agents.last_resort import LastResorts
from agents.offer import Offer
from agents.record import NEVER_RELEASED, STAGES, Ledger, Record, Slo, Status
from agents.uplink import ConnectionLost, Delivery, Hedge, Refused, Stop, Uplink
from allocator.online.interfaces import NoWorkerAlive
from allocator.online.standing import Standing
from allocator.problem import ModeOption, Plan, Request, local_option
from cloud.frames import Header, Kind, frame_bytes
from kvcache.modes import LOCAL, Mode
from models.clock import sleep_until
from models.profiles import ModelProfile
from netem.wire import wire_bytes

# Before a request is sent again: long enough for the loss of a worker to be known, then until it may be back.
RESEND_S = 0.1
MAX_RESEND_S = 1.0
DELAYS = 16  # of the last requests, by which an agent knows its path
SHED = "shed: its compute alone takes longer than is left"


class AllocatorClient(Protocol):
    """The allocator as an agent sees it, wherever it runs. Only `assign` waits for anything."""

    def announce(self, request: Request) -> None:
        """The request has been released and will ask for an assignment later."""
        ...

    async def assign(self, request: Request) -> Plan:
        """A plan; its grant is in force."""
        ...

    def received(self, request_id: int) -> None:
        """The cloud needs no more of the request: its agent's uplink is free."""
        ...

    def finish(self, request_id: int, gave_up: bool = False) -> None:
        """The request has ended, whether or not it was ever assigned.

        Args:
            gave_up: the agent stopped waiting for an answer that the cloud may still be working on.
        """
        ...


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What one agent is.

    Attributes:
        offer: what it can offer for requests of any lengths.
        model: index of its profile in the run's list.
        options: what it offers the allocator for requests of the profile's own lengths; requests of other lengths
            are offered in the same modes.
        weight: what its requests count for the allocator.
        backlog_limit: requests waiting for or on the agent's uplink, beyond which new ones are rejected.
        timeout_ms: after this time from its intended start a request has failed.
        resend: whether a request whose connection is lost is assigned and sent again, until its deadline.
        ttft_ms, tpot_ms: see `Slo`.
    """

    agent_id: int
    offer: Offer
    model: int
    options: tuple[ModeOption, ...]
    deadline_ms: float
    timeout_ms: float
    backlog_limit: int
    weight: float = 1.0
    resend: bool = True
    ttft_ms: float | None = None
    tpot_ms: float | None = None

    @property
    def slo(self) -> Slo:
        """What its requests must keep."""
        return Slo(self.deadline_ms, self.ttft_ms, self.tpot_ms)

    @property
    def profile(self) -> ModelProfile:
        """Of its model."""
        return self.offer.profile


@dataclass(frozen=True, slots=True)
class Terms:
    """What agents know of an allocator before they ask it.

    Attributes:
        modes: which it may assign; None for all that agents offer.
        fall_back: whether a request stays local when its agent's uplink is busy until nothing else is left.
        edge_answers: with `fall_back`: whether the edge also answers what has been sent and isn't answered in time.
        margin_ms: how much before the deadline answers are planned.
        shed: whether a request is rejected as soon as its compute alone can't be done in time.
    """

    modes: frozenset[Mode] | None = None
    fall_back: bool = False
    edge_answers: bool = False
    margin_ms: float = 0.0
    shed: bool = False


class PathDelay:
    """What an agent's path takes, there and back, without queues: the least of what it took lately."""

    def __init__(self) -> None:
        self._lately: deque[float] = deque(maxlen=DELAYS)

    def learn(self, ms: float) -> None:
        """The first byte of a request and its answer took so long together."""
        if math.isfinite(ms):
            self._lately.append(max(0.0, ms))

    @property
    def ms(self) -> float:
        """0 before anything is known."""
        return min(self._lately, default=0.0)


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer that the edge has begun beside what is sent, and the record that it writes its stages into."""

    answer: "asyncio.Task[str]"
    record: Record


class Rejected(Exception):
    """The request is not served; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What changes for an agent while it is serving; None: stays as it is.

    Attributes:
        deadline_ms: of the requests that are released from now on.
        paused: whether its requests are rejected from now on.
        terms: of the policy that decides from now on.
        down: why the agent's process has ended; its requests, also those in flight, fail for that reason; "": it is
            there again.
    """

    deadline_ms: float | None = None
    paused: bool | None = None
    terms: Terms | None = None
    down: str | None = None


class Agent:
    """One edge agent. Its compute and its uplink serve one request at a time each, first come first served.

    Time is the running event loop's: wall clock live, virtual in simulation.
    """

    def __init__(
        self,
        settings: AgentSettings,
        edge: EdgeRuntime,
        uplink: Uplink,
        allocator: AllocatorClient,
        ledger: Ledger,
        epoch_s: float,
        terms: Terms,
    ) -> None:
        self.settings = settings
        self._edge = edge
        self._uplink = uplink
        self._allocator = allocator
        self._ledger = ledger
        self._epoch_s = epoch_s
        self._time_s = asyncio.get_running_loop().time
        self._options = {option.mode: option for option in settings.options}
        self._agree(terms)
        self._paused = False
        self._down = ""
        self._serving: set[asyncio.Task[None]] = set()
        self._standing: dict[int, Standing] = {}
        self._compute = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._backlog: set[int] = set()  # requests that wait for the agent's compute or uplink, or are on it
        self._queued: set[int] = set()  # those of them that wait for the uplink
        self._last_resorts = LastResorts()
        self._away = PathDelay()
        self._begun: dict[int, Begun] = {}
        self._coming: dict[int, Delivery] = {}  # what the cloud has and hasn't answered yet

    def adjust(self, change: Adjustment) -> None:
        """Change what the agent goes by, between requests or during some."""
        s = self.settings
        if change.deadline_ms is not None:
            # Answers are waited for as long after the deadline as before.
            timeout_ms = s.timeout_ms - s.deadline_ms + change.deadline_ms
            self.settings = replace(s, deadline_ms=change.deadline_ms, timeout_ms=timeout_ms)
        if change.paused is not None:
            self._paused = change.paused
        if change.terms is not None:
            self._agree(change.terms)
        if change.down is not None:
            self._down = change.down
            for task in self._serving if change.down else ():
                task.cancel()

    def standing(self) -> list[Standing]:
        """The requests that the allocator has been told of and that have not ended."""
        return list(self._standing.values())

    def _agree(self, terms: Terms) -> None:
        self._falls_back = terms.fall_back
        self._margin_ms = terms.margin_ms
        self._sheds = terms.shed
        self._edge_answers = terms.edge_answers

    async def serve(self, arrival: Arrival) -> None:
        """The life of one request. Ends with exactly one record written, also when cancelled."""
        s = self.settings
        record = Record.of(arrival, s.profile.name, s.slo)
        if self._down:
            record.reason = NEVER_RELEASED + self._down
            self._ledger.write(record)
            return
        self._ledger.issue(arrival)
        record.lateness_ms = self._since_ms(arrival.intended_s)
        gave_up = False
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            if not self._admit(record):
                return
            request = self._request(record)
            self._announce(request)
            async with asyncio.timeout_at(self._epoch_s + arrival.intended_s + s.timeout_ms / 1e3):
                work = await self._answer(record, request)
            record.answered_in(self._since_ms(arrival.intended_s))
            met = record.in_time(s.deadline_ms)
            record.status = Status.MET if met else Status.LATE
            measured = work.quality(record.answer)
            if measured is None:
                assert record.answered is not None
                measured = self._options[record.answered].quality
            record.quality_credited = measured
            record.quality_delivered = record.quality_credited if met else 0.0
        except TimeoutError:
            record.reason, gave_up = f"no answer within {s.timeout_ms:g} ms", True
        except (Rejected, Refused) as refusal:
            record.status, record.reason = _refused(refusal)
        except ConnectionLost as error:
            record.reason, gave_up = f"connection lost: {error}", True
        except asyncio.CancelledError:
            record.reason, gave_up = self._down or "interrupted", True
            raise
        except Exception as error:
            # Whatever broke, the row must be written: a ledger that doesn't balance hides the very runs that matter.
            record.reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"
        finally:
            self._serving.discard(task)
            self._ledger.write(record)
            # The cloud may still work on what the edge has answered.
            self._finish(record.request_id, gave_up or record.answered == LOCAL)

    def _admit(self, record: Record) -> bool:
        """Whether the agent takes the request; if not, the record says why."""
        if self._paused:
            record.status, record.reason = Status.REJECTED, "paused"
        elif len(self._backlog) >= self.settings.backlog_limit:
            # Of those that wait for the uplink, the edge can answer one at once.
            hurried = self._last_resorts.hurry(self._queued)
            if hurried is None:
                record.status, record.reason = Status.REJECTED, "backlog"
            else:
                self._backlog.discard(hurried)
        return not record.reason

    async def _answer(self, record: Record, request: Request) -> Work:
        """Steps 2 to 5 of a request's life, each timed into `record`, as is the answer. Returns what it came from."""
        lap_ms = stopwatch(self._time_s)
        self._backlog.add(request.request_id)
        try:
            async with self._compute:
                record.queue_ms = lap_ms()
                if self._sheds and self._time_s() + self._prefill_ms(record) / 1e3 > self._latest_s(request):
                    raise Rejected(SHED)
                work = await self._edge.prefill(record.request_id, record.lengths)
                record.prefill_ms = lap_ms()
            last = self._last_resort(request)
            if self._edge_answers and last is not None:
                await self._answer_in_time(record, request, work, last)
            else:
                await self._answer_as_planned(record, request, work)
        finally:
            self._backlog.discard(request.request_id)
        return work

    async def _answer_as_planned(self, record: Record, request: Request, work: Work, stop: Stop = None) -> None:
        """Steps 3 to 5. They are done again if the connection is lost, with another worker if that has died."""
        prefilled_s, queue_ms = self._time_s(), record.queue_ms
        for attempt in count():
            record.queue_ms = queue_ms
            try:
                await self._attempt(record, request, work, prefilled_s, stop)
                return
            except (ConnectionLost, NoWorkerAlive):
                wait_s = min(RESEND_S * 2**attempt, MAX_RESEND_S)
                if not self.settings.resend or self._time_s() + wait_s > request.deadline_s:
                    raise
                self._finish(request.request_id, gave_up=True)
                self._announce(request)
                await sleep_until(self._time_s() + wait_s)

    async def _attempt(self, record: Record, request: Request, work: Work, prefilled_s: float, stop: Stop) -> None:
        """Steps 3 to 5, once. Raises also ConnectionLost and NoWorkerAlive."""
        self._backlog.add(request.request_id)
        self._queued.add(request.request_id)
        try:
            last_resort = self._last_resort(request)
            in_turn = await self._take_turn(request, last_resort)
        finally:
            self._queued.discard(request.request_id)
        record.uplink_wait_ms = (self._time_s() - prefilled_s) * 1e3
        lap_ms = stopwatch(self._time_s)
        try:
            if in_turn:
                plan = await self._assign(record, request, work)
                option = plan.option
                record.allocate_ms = lap_ms()
                delivery = await self._transfer(record, request, work, plan, stop) if option.wire_bytes else None
            else:
                assert last_resort is not None
                option, delivery = self._stay(record, last_resort), None
        finally:
            self._backlog.discard(request.request_id)
            if in_turn:
                self._turn.release()
        if delivery is None:
            begun = self._begun.get(record.request_id)
            record.answer = await (self._decode(record, work, option) if begun is None else self._take(record, begun))
            record.answered = option.mode
            return
        self._coming[record.request_id] = delivery
        try:
            stages = await delivery.answer
        finally:
            del self._coming[record.request_id]
        record.cloud_queue_ms = stages.queue_ms
        record.cloud_prefill_ms = stages.prefill_ms
        record.decode_ms = stages.decode_ms
        record.answered_tokens = stages.tokens
        record.ttft_ms = self._since_ms(record.intended_s) - (self._time_s() - delivery.first_token_s) * 1e3
        served_s = stages.received_s + (stages.queue_ms + stages.prefill_ms + stages.decode_ms) / 1e3
        record.answer_ms = (self._time_s() - served_s) * 1e3
        self._away.learn(record.first_byte_ms + record.answer_ms)
        record.answered, record.answer = self.settings.profile.mode_at(stages.mode), stages.text

    async def _decode(self, record: Record, work: Work, option: ModeOption) -> str:
        """The edge's own answer."""
        lap_ms = stopwatch(self._time_s)
        async with self._compute:
            record.queue_ms += lap_ms()
            answer = await work.decode(option.edge_ms)
            record.decode_ms = lap_ms()
            if record.lengths is not None:  # its tokens were there as they were made
                record.answered_tokens = record.output_tokens
                tail_ms = record.decode_ms * (1 - 1 / record.output_tokens)
                record.ttft_ms = self._since_ms(record.intended_s) - tail_ms
            return answer

    async def _take(self, record: Record, begun: Begun) -> str:
        """The edge's own answer, which it has begun already."""
        lap_ms, decided_ms = stopwatch(self._time_s), self._since_ms(record.intended_s)
        answer = await asyncio.shield(begun.answer)
        record.decode_ms = lap_ms()
        self._give(record, begun.record, decided_ms)
        return answer

    def _give(self, record: Record, here: Record, from_ms: float) -> None:
        """The answer's first token is the edge's, which was held back until `from_ms` in case that a better one comes.

        Without a limit of its own it is held back until the whole answer is given.
        """
        record.ttft_ms, record.answered_tokens = math.nan, 0
        first_ms = max(from_ms, here.ttft_ms)
        if not math.isnan(record.ttft_slo_ms) and here.answered_tokens and first_ms < self._since_ms(record.intended_s):
            record.ttft_ms, record.answered_tokens = first_ms, here.answered_tokens

    async def _answer_in_time(self, record: Record, request: Request, work: Work, last: ModeOption) -> None:
        """As planned if that is in time; else the edge's own answer, which is begun at the last moment."""
        stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # The compute may have begun another answer just before, and prefills other requests in between.
        cost_ms = last.edge_ms + self._prefill_ms(record)
        begin_s = request.due_s - (last.edge_ms + request.early_ms(last)) / 1e3
        begin = self._last_resorts.add(request.request_id, begin_s, cost_ms)
        planned = asyncio.create_task(self._answer_as_planned(record, request, work, stop))
        try:
            either: set[asyncio.Future[Any]] = {planned, begin}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if record.mode == last.mode or (planned.done() and not _is_lost(planned)):
                await planned
                return
            here = replace(record)
            self._account(here)
            decoding = asyncio.create_task(self._decode(here, work, last))
            self._begun[request.request_id] = Begun(decoding, here)
            try:
                await asyncio.wait({planned, decoding}, return_when=asyncio.FIRST_COMPLETED)
                in_vain = planned.done() and not self._is_answer(planned, record)
                if in_vain or not planned.done():
                    await asyncio.wait({decoding})
                    hurried = begin.done() and begin.result()
                    await self._await_better(request, planned, hurried)
                if not in_vain and self._is_answer(planned, record):
                    await planned
                    return
                here.answer = await decoding
            finally:
                del self._begun[request.request_id]
                decoding.cancel()
            stop.set_result(None)
            planned.cancel()
            await asyncio.wait({planned})
            self._take_over(record, here, last)
            self._give(record, here, (self._first_latest_s(request) - self._epoch_s - record.intended_s) * 1e3)
        finally:
            self._last_resorts.drop(request.request_id)
            if not planned.done():
                planned.cancel()
                await asyncio.wait({planned})

    async def _await_better(self, request: Request, planned: "asyncio.Task[None]", hurried: bool) -> None:
        """An answer in hand takes no time, so it can wait for a better one, and use up half of the margin."""
        latest_s = request.deadline_s - self._margin_ms / 2e3
        coming = self._coming.get(request.request_id)
        if coming is None or math.isnan(coming.first_token_s):
            latest_s = min(latest_s, self._first_latest_s(request))
        wait_s = 0.0 if hurried else max(0.0, latest_s - self._time_s())
        await asyncio.wait({planned}, timeout=wait_s)

    def _first_latest_s(self, request: Request) -> float:
        """Until when the first token of an answer in hand may be held back."""
        return request.first_due_s + request.margin_s - self._margin_ms / 2e3

    def _is_answer(self, planned: "asyncio.Task[None]", record: Record) -> bool:
        """Whether a task that may just have ended decides the request: not if it was lost, or its first token late."""
        if not planned.done() or _is_lost(planned):
            return False
        if planned.cancelled() or planned.exception() is not None:
            return True
        first_ms = self._since_ms(record.intended_s) if math.isnan(record.ttft_ms) else record.ttft_ms
        return not first_ms > record.ttft_slo_ms

    def _take_over(self, record: Record, here: Record, option: ModeOption) -> None:
        """The answer is the edge's: its stages count, but what was sent for the other one was sent."""
        for stage in STAGES:
            setattr(record, f"{stage}_ms", getattr(here, f"{stage}_ms"))
        if record.mode is None:
            self._stay(record, option)
        record.answer, record.answered = here.answer, option.mode
        record.answer_ms = self._since_ms(record.intended_s) - sum(getattr(record, f"{stage}_ms") for stage in STAGES)

    def _account(self, record: Record) -> None:
        """Give the time that no stage has been credited with yet to the stage that is going on."""
        rest_ms = self._since_ms(record.intended_s) - sum(getattr(record, f"{stage}_ms") for stage in STAGES)
        if record.mode is None:
            record.uplink_wait_ms += rest_ms
        elif not record.transfer_ms:
            record.transfer_ms = rest_ms
        else:
            record.cloud_queue_ms = rest_ms

    async def _take_turn(self, request: Request, last_resort: ModeOption | None) -> bool:
        """Wait for the agent's uplink; False if it stays busy until the request can only be answered on the edge.

        Raises:
            Rejected: it stays busy until the request can't be answered in time at all.
        """
        until_s: float | None = None
        if self._edge_answers and last_resort is not None:  # which ends the wait
            pass
        elif last_resort is not None:
            until_s = request.due_s - (last_resort.edge_ms + request.early_ms(last_resort)) / 1e3
        elif self._sheds:
            until_s = self._latest_s(request)
        if until_s is None or not self._turn.locked():
            await self._turn.acquire()
            return True
        try:
            async with asyncio.timeout_at(until_s):
                await self._turn.acquire()
                return True
        except TimeoutError:
            if last_resort is None:
                raise Rejected(SHED) from None
            return False

    def _last_resort(self, request: Request) -> ModeOption | None:
        """What its edge can answer from by itself, if that is allowed."""
        return local_option(request.options) if self._falls_back else None

    def _prefill_ms(self, record: Record) -> float:
        """How long the edge expects to prefill the request."""
        return self.settings.offer.prefill_ms(record.lengths)

    def _latest_s(self, request: Request) -> float:
        """When the request's own work must begin for any mode to be in time, were its transfer done in no time."""
        options = request.with_first_token().options
        return request.deadline_s - min(option.edge_ms + option.cloud_ms for option in options) / 1e3

    def _stay(self, record: Record, last_resort: ModeOption) -> ModeOption:
        """The last resort, for which nobody has to be asked."""
        record.mode = last_resort.mode
        record.predicted_ms = self._since_ms(record.intended_s) + last_resort.edge_ms
        return last_resort

    async def _assign(self, record: Record, request: Request, work: Work) -> Plan:
        """Ask the allocator, with the options as they are known now that the context is prefilled."""
        options = work.offer(request.options)
        asked = replace(request, options=options, starts_s=self._time_s())
        plan = await self._allocator.assign(asked)
        if plan.rejected:
            raise Rejected(plan.rejected)
        self._standing[record.request_id] = Standing(asked, plan, self._time_s())
        record.mode, record.hedge = plan.option.mode, plan.hedge.mode if plan.hedge else None
        record.worker = plan.worker
        record.grant_mbps = plan.grant_mbps
        record.estimate_mbps = plan.estimate_mbps
        if plan.likely is not None:
            record.likely = plan.likely
        record.predicted_ms = (plan.ready_s - self._epoch_s - record.intended_s) * 1e3
        return plan

    async def _transfer(self, record: Record, request: Request, work: Work, plan: Plan, stop: Stop) -> Delivery:
        """Encode, send, and wait until the worker needs no more of it: until then the agent's uplink is busy.

        Cancelled with `stop` done, it leaves off sending in good order.
        """
        s, option, ahead = self.settings, plan.option, plan.hedge
        lap_ms = stopwatch(self._time_s)
        async with self._compute:
            record.queue_ms += lap_ms()
            hedge = None
            if ahead is not None:
                payload = await work.encode(ahead.mode, ahead.edge_ms)
                hedge_due_s = request.due_s - request.early_ms(ahead) / 1e3
                hedge = Hedge(s.profile.code_of(ahead.mode), payload, hedge_due_s)
            payload = await work.encode(option.mode, option.edge_ms)
        record.encode_ms = lap_ms()
        mode = s.profile.code_of(option.mode)
        header = Header(
            Kind.REQUEST,
            record.request_id,
            payload.size,
            s.agent_id,
            s.model,
            mode,
            deadline_s=request.deadline_s - request.early_ms(request.in_mode(option.mode)) / 1e3,
            lengths=record.lengths,
        )
        sent_s = self._time_s()
        sending = asyncio.create_task(self._uplink.send(record.worker, header, payload, hedge, stop))
        try:
            delivery = await asyncio.shield(sending)
            receipt = await delivery.receipt
            self._count(record, delivery, hedge)
        except asyncio.CancelledError:
            if stop is None or not stop.done():
                sending.cancel()
            await asyncio.wait({sending})
            if not sending.cancelled() and sending.exception() is None:
                self._count(record, sending.result(), hedge)
            raise
        self._allocator.received(record.request_id)
        self._standing[record.request_id] = replace(self._standing[record.request_id], received=True)
        # Of a hedged answer, the receipt tells when the hedge came; the transfer went on until now.
        ended_s = receipt.received_s if receipt.mode == header.mode else self._time_s()
        sent_s += delivery.handshake_ms / 1e3
        record.handshake_ms = delivery.handshake_ms
        record.first_byte_ms = (receipt.first_byte_s - sent_s) * 1e3
        record.transfer_ms = (ended_s - sent_s) * 1e3
        return delivery

    def _count(self, record: Record, delivery: Delivery, hedge: Hedge | None) -> None:
        """The bytes that were sent."""
        record.payload_bytes += delivery.sent_bytes
        record.wire_bytes += wire_bytes(frame_bytes(delivery.sent_bytes))
        if hedge is not None:
            record.payload_bytes += hedge.payload.size
            record.wire_bytes += wire_bytes(frame_bytes(hedge.payload.size))

    def _announce(self, request: Request) -> None:
        self._standing[request.request_id] = Standing(request)
        self._allocator.announce(request)

    def _finish(self, request_id: int, gave_up: bool) -> None:
        self._standing.pop(request_id, None)
        self._allocator.finish(request_id, gave_up)

    def _request(self, record: Record) -> Request:
        """The request as it is announced. The margin, and what the path takes, are subtracted here and nowhere else."""
        s, margin_s = self.settings, (self._margin_ms + self._away.ms) / 1e3
        due_s = self._epoch_s + record.intended_s + record.deadline_ms / 1e3 - margin_s
        options, lengths = s.options, record.lengths
        if lengths is not None:
            options = tuple(option for option in s.offer.options(lengths) if option.mode in self._options)
        starts_s = self._time_s() + s.offer.prefill_ms(lengths) / 1e3
        first_due_s = math.inf
        if s.ttft_ms is not None:
            first_due_s = self._epoch_s + record.intended_s + s.ttft_ms / 1e3 - margin_s
        return Request(
            record.request_id, s.agent_id, due_s, options, s.weight, starts_s, margin_s, first_due_s=first_due_s
        )

    def _since_ms(self, at_s: float) -> float:
        """Milliseconds since `at_s` seconds after the run's start."""
        return (self._time_s() - self._epoch_s - at_s) * 1e3


def _refused(refusal: Rejected | Refused) -> tuple[Status, str]:
    """What became of a request that wasn't served, and why."""
    if isinstance(refusal, Rejected):
        return Status.REJECTED, str(refusal)
    # A full queue is the cloud's admission at work; any other refusal means that something is broken.
    return Status.REJECTED if str(refusal) == "queue_full" else Status.FAILED, f"cloud: {refusal}"


def _is_lost(task: "asyncio.Task[None]") -> bool:
    """Whether a task that has ended brought no answer, because it was refused or the cloud was lost."""
    return not task.cancelled() and isinstance(task.exception(), Rejected | Refused | ConnectionLost | NoWorkerAlive)


def stopwatch(time_s: Callable[[], float]) -> Callable[[], float]:
    """A function that returns the milliseconds since its last call."""
    last_s = time_s()

    def lap_ms() -> float:
        nonlocal last_s
        before_s, last_s = last_s, time_s()
        return (last_s - before_s) * 1e3

    return lap_ms
