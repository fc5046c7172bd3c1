"""What are processes of their own in a live run, on virtual time: each can be frozen, and a worker can die."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Hashable, Mapping
from functools import partial
from typing import Any

from agents.uplink import ConnectionLost
from allocator.online.interfaces import Link
from allocator.online.service import Allocator
from allocator.problem import Plan, Request
from cloud.worker import AnyWorker, Job
from models.clock import sleep_ms


class Freezable:
    """A process that can be stopped for a time, as by SIGSTOP; `running` is set while it isn't."""

    def __init__(self) -> None:
        self.running = asyncio.Event()
        self.running.set()

    def freeze(self) -> None:
        """Stop it."""
        self.running.clear()

    def thaw(self) -> None:
        """Let it run again."""
        self.running.set()


class SimulatedWorker(Freezable):
    """A cloud worker and its connections. `serving` ends only by an error, or when the worker is killed.

    Frozen, it receives and serves nothing; what is sent to it arrives when it runs again.
    """

    def __init__(self, worker: AnyWorker) -> None:
        super().__init__()
        self._counted: Counter[str] = Counter()
        self._lost: dict[Hashable, Callable[[ConnectionLost], None]] = {}
        self.start(worker)

    def start(self, worker: AnyWorker) -> None:
        """Begin to serve, for the first time or after `kill`."""
        self._worker = worker
        self.died: ConnectionLost | None = None
        self.serving = asyncio.create_task(self._serve())

    @property
    def counts(self) -> Counter[str]:
        """Requests by what became of them, in all of its lives."""
        return self._counted + self._worker.counts

    async def _serve(self) -> None:
        await _ResumedWhile(self.running, self._worker.serve_queue())

    def connect(self, key: Hashable, lost: Callable[[ConnectionLost], None]) -> None:
        """Begin a request, until `disconnect`; `lost` is called if the worker dies meanwhile. Raises ConnectionLost."""
        if self.died is not None:
            raise self.died
        self._lost[key] = lost

    def disconnect(self, key: Hashable) -> None:
        """The request has been answered or refused, or is no longer wanted."""
        self._lost.pop(key, None)

    def withdraw(self, key: Hashable) -> None:
        """See `AnyWorker`."""
        self._worker.withdraw(key)

    def hold(self, job: Job) -> None:
        """See `AnyWorker`."""
        self._worker.hold(job)

    async def submit(self, job: Job) -> None:
        """See `AnyWorker`. Raises also ConnectionLost."""
        await self.running.wait()
        if self.died is not None:
            raise self.died
        await self._worker.submit(job)

    def kill(self, reason: str) -> None:
        """End it: all its requests lose their connection."""
        self.died = ConnectionLost(reason)
        self.serving.cancel()
        self.thaw()
        self._counted += self._worker.counts
        self._worker.counts.clear()
        lost = list(self._lost.values())
        self._lost.clear()
        for notify in lost:
            notify(self.died)

    def forget(self) -> None:
        """See `AnyWorker`."""
        self._worker.forget()


class SimulatedAllocator(Freezable):
    """The allocator as agents and the base station reach it: asking takes a while. See `agents.agent.AllocatorClient`.

    Frozen, it does nothing; messages wait in order until it runs again. Killed, it loses them; who asks it waits for
    the next one.
    """

    def __init__(self, allocator: Allocator, ask_ms: float) -> None:
        super().__init__()
        self.allocator = allocator
        self._dead = False
        self._way_ms = ask_ms / 2
        self._loop = asyncio.get_running_loop()
        self._agents_running: dict[int, asyncio.Event] = {}  # of agents whose host was frozen
        self._inbox: list[Callable[[], object]] = []
        self._late: set[asyncio.Task[None]] = set()

    def announce(self, request: Request) -> None:
        self._send(Allocator.announce, request)

    async def assign(self, request: Request) -> Plan:
        while True:
            await self._agent_running(request.agent_id)
            await sleep_ms(self._way_ms)
            await self.running.wait()
            asked = self.allocator
            plan = await asked.assign(request)
            await self.running.wait()
            await sleep_ms(self._way_ms)
            await self._agent_running(request.agent_id)
            if asked is self.allocator and not self._dead:
                return plan

    def received(self, request_id: int) -> None:
        self._send(Allocator.received, request_id)

    def finish(self, request_id: int, gave_up: bool = False) -> None:
        self._send(Allocator.finish, request_id, gave_up)

    def kill(self) -> None:
        """End it, with all messages to it."""
        self._dead = True
        self.freeze()
        self._inbox.clear()

    def start(self, allocator: Allocator) -> None:
        """Another one serves from now on."""
        self.allocator = allocator
        self._dead = False
        self.thaw()

    def freeze_agent(self, agent_id: int) -> None:
        """Hold back an agent's questions, and the answers to them."""
        self._agents_running.setdefault(agent_id, asyncio.Event()).clear()

    def thaw_agent(self, agent_id: int) -> None:
        """Let them pass again."""
        if agent_id in self._agents_running:
            self._agents_running[agent_id].set()

    async def _agent_running(self, agent_id: int) -> None:
        if (running := self._agents_running.get(agent_id)) is not None:
            await running.wait()

    async def tell(self, call: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Await a call of the allocator; while it is frozen, have it awaited later instead; if it is dead, never."""
        if self.running.is_set():
            await call(*arguments)
        elif not self._dead:
            self._inbox.append(lambda: self._late.add(asyncio.create_task(call(*arguments))))

    def thaw(self) -> None:
        super().thaw()
        inbox, self._inbox = self._inbox, []
        for deliver in inbox:
            deliver()

    def _send(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._way_ms:
            self._loop.call_later(self._way_ms / 1e3, self._deliver, call, *arguments)
        else:
            self._deliver(call, *arguments)

    def _deliver(self, call: Callable[..., None], *arguments: Any) -> None:
        if self.running.is_set():
            call(self.allocator, *arguments)
        elif not self._dead:
            self._inbox.append(partial(call, self.allocator, *arguments))


class SimulatedHelper(Freezable):
    """The link's helper: grants go through it. See `allocator.online.service.Link`."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    async def set_grants(self, grants_mbps: Mapping[int, float]) -> None:
        await self.running.wait()
        await self._link.set_grants(grants_mbps)


class _ResumedWhile:
    """Awaits a coroutine that is resumed only while `running` is set, whatever it waits for."""

    def __init__(self, running: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
        self._running = running
        self._work = work

    def __await__(self) -> Generator[Any, None, None]:
        resume: Callable[[Any], Any] = self._work.send
        value: Any = None
        while True:
            try:
                awaited = resume(value)
            except StopIteration:
                return
            try:
                yield awaited
                if not self._running.is_set():
                    yield from self._running.wait().__await__()
                resume, value = self._work.send, None
            except BaseException as error:  # cancelled meanwhile: the coroutine's to handle
                resume, value = self._work.throw, error
