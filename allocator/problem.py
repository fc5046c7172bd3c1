"""The allocation problem and its answer: plain values, no policy, no clock.

Choose a mode for every request so that

- the uplink suffices: a request that meets its deadline in a mode needs at least
  `wire_bytes * 8 / (time left - edge_ms - cloud_ms)`, a transfer in flight at least `bytes_left * 8 / (time left)`;
- cloud time suffices, where it is modelled: for every deadline d, the cloud work of the requests due by d is at most
  the time that the workers have until then, and nothing starts before the first worker is free (EDF feasibility). Of
  requests that are served side by side, the work is what each adds;
- as much weight as possible meets its deadline, and after that the weighted quality of what does is highest.

Times that end in `_s` are absolute, in seconds on one clock: the running event loop's in a run, any other in a problem
by itself. Every answer is planned for `due_s`, its deadline less the planning margin; nobody else subtracts a margin.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from kvcache.modes import Mode

# A predicted time that misses a deadline by less than this share of it meets it: an exactly sufficient rate suffices.
ROUNDING = 1e-9

OnInfeasible = Literal["local", "late"]


@dataclass(frozen=True, slots=True)
class ModeOption:
    """One way to serve a request.

    Attributes:
        mode: operating mode.
        wire_bytes: bytes that cross the uplink, headers of every layer included.
        edge_ms: compute on the edge agent from the assignment on (encoding, or decoding for `local`).
        cloud_ms: compute on the cloud worker (prefill if any, decode), without queueing.
        quality: of the answer, if it is used.
        cloud_prefill_ms: part of `cloud_ms` that can't be shared with other requests of a batch.
        decoder: requests with an equal decoder can be decoded together.
        added_ms: what it adds to the work of a cloud worker, where that isn't `cloud_ms` because requests are served
            side by side.
        tail_ms: the part of `cloud_ms` (where nothing is sent: of `edge_ms`) after the answer's first token; 0 where an
            answer comes whole.
        generation: what a worker that batches by iteration must know of it; the dispatcher's business alone.
    """

    mode: Mode
    wire_bytes: int
    edge_ms: float
    cloud_ms: float
    quality: float
    cloud_prefill_ms: float = 0.0
    decoder: Hashable = 0
    added_ms: float | None = None
    tail_ms: float = 0.0
    generation: Any = field(default=None, compare=False)

    @property
    def work_ms(self) -> float:
        """What it takes of the workers' time."""
        return self.cloud_ms if self.added_ms is None else self.added_ms

    def latency_ms(self, mbps: float) -> float:
        """Predicted time from the assignment to the answer at a rate of `mbps` Mbit/s, empty queues assumed."""
        if self.wire_bytes == 0:
            return self.edge_ms + self.cloud_ms
        transfer_ms = self.wire_bytes * 8 / (mbps * 1e3) if mbps > 0 else float("inf")
        return self.edge_ms + transfer_ms + self.cloud_ms

    def ready_ms(self, mbps: float, cloud_free_in_ms: float = 0.0) -> float:
        """The same, where the first cloud worker is free after `cloud_free_in_ms`: cloud work starts no sooner."""
        latency_ms = self.latency_ms(mbps)
        return max(latency_ms, cloud_free_in_ms + self.cloud_ms) if self.cloud_ms else latency_ms

    def meets(self, mbps: float, time_left_ms: float, cloud_free_in_ms: float = 0.0) -> bool:
        """Whether the answer is there within `time_left_ms`. The solvers use its inverse, `least_mbps`."""
        return self.ready_ms(mbps, cloud_free_in_ms) <= time_left_ms * (1 + ROUNDING)

    def least_mbps(self, time_left_ms: float) -> float:
        """The lowest rate for an answer within `time_left_ms`, empty queues assumed; inf if there is none."""
        transfer_ms = time_left_ms - self.edge_ms - self.cloud_ms
        if self.wire_bytes == 0:
            return 0.0 if transfer_ms >= 0 else float("inf")
        return self.wire_bytes * 8 / (transfer_ms * 1e3) if transfer_ms > 0 else float("inf")


def _later(option: ModeOption, early_ms: float) -> ModeOption:
    if not early_ms:
        return option
    if not option.wire_bytes:
        return replace(option, edge_ms=option.edge_ms + early_ms)
    return replace(option, cloud_ms=option.cloud_ms + early_ms, added_ms=option.work_ms)


def local_option(options: Sequence[ModeOption]) -> ModeOption | None:
    """The option that sends nothing, which is answered on the edge; None where there is none."""
    return next((option for option in options if not option.wire_bytes), None)


def smallest_option(options: Sequence[ModeOption]) -> ModeOption:
    """The option that sends least, of those that send anything; the first of all if none does."""
    return min((o for o in options if o.wire_bytes), key=lambda o: o.wire_bytes, default=options[0])


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """An edge agent that may ask.

    Attributes:
        kv_bytes: its full cache, its weight in shares that go by size.
        ceiling_mbps: what its connection can use of any grant: where packets are lost, less than the uplink.
    """

    agent_id: int
    kv_bytes: int
    ceiling_mbps: float = float("inf")


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose mode is still to be chosen.

    Attributes:
        due_s: when its answer is planned to be there: its deadline less the planning margin.
        weight: the value of meeting its deadline, and of its quality.
        starts_s: when its mode's own work (encoding, or decoding on the edge) can begin. In the future, the request has
            been announced and will ask then.
        margin_s: between `due_s` and the deadline itself.
        ceiling_mbps: see `AgentInfo`.
        first_due_s: as `due_s`, of its first token.
    """

    request_id: int
    agent_id: int
    due_s: float
    options: tuple[ModeOption, ...]
    weight: float = 1.0
    starts_s: float = 0.0
    margin_s: float = 0.0
    ceiling_mbps: float = float("inf")
    first_due_s: float = float("inf")

    @property
    def deadline_s(self) -> float:
        """The deadline itself, which a cloud worker orders by and the ledger judges by."""
        return self.due_s + self.margin_s

    def in_mode(self, mode: Mode) -> ModeOption:
        """Its own option of this mode, whatever a plan added to it."""
        return next(option for option in self.options if option.mode == mode)

    def early_ms(self, option: ModeOption) -> float:
        """How much sooner than by `due_s` an answer must be there for its first token to be in time."""
        if self.first_due_s >= self.due_s:
            return 0.0
        return max(0.0, (self.due_s - self.first_due_s) * 1e3 - option.tail_ms)

    def with_first_token(self) -> "Request":
        """The request with options that take so much longer that `due_s` is the only time to meet."""
        if self.first_due_s >= self.due_s:
            return self
        return replace(self, options=tuple([_later(option, self.early_ms(option)) for option in self.options]))


@dataclass(slots=True, eq=False)
class Transfer:
    """A request in flight on the uplink: its mode is fixed, its rate may change.

    Attributes:
        bytes_left: wire bytes still to be carried, as far as the allocator can know.
        due_s: when the cloud must have the last of them, with all precautions (margin, queueing in the cloud).
        late_s: when the answer is certainly late if the cloud doesn't have them; at least `due_s`.
        starts_s: when it begins to send; in the future while its payload is encoded.
        ceiling_mbps: see `AgentInfo`.
    """

    request_id: int
    agent_id: int
    bytes_left: float
    due_s: float
    late_s: float
    weight: float = 1.0
    starts_s: float = 0.0
    ceiling_mbps: float = float("inf")

    def least_mbps(self, now_s: float) -> float:
        """The lowest rate that is enough from when it sends; inf once it is too late for any."""
        left_s = self.due_s - max(now_s, self.starts_s)
        return self.bytes_left * 8e-6 / left_s if left_s > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Problem:
    """The knowledge that a policy may use.

    Attributes:
        uplink_mbps: the *estimated* uplink.
        agents: all agents of the run, busy or not.
        requests: those whose mode is to be chosen; the one that asks now comes first.
        transfers: those in flight on the uplink; a policy must not change them.
        workers_free_s: for each cloud worker, when it will have done the work promised to it, inf if it is lost; None
            if cloud time is not modelled (as in the papers).
        workers_begin_s: when each can begin with another request, where that is sooner because it serves several side
            by side.
        on_infeasible: the fate of a request that can't meet its deadline: answered on the edge (`local`, where it is
            offered), or late, by the mode that sends least, on the rate that the others leave.
        now_s: the moment of the decision.
    """

    uplink_mbps: float
    agents: tuple[AgentInfo, ...]
    requests: tuple[Request, ...]
    transfers: tuple[Transfer, ...] = ()
    workers_free_s: tuple[float, ...] | None = None
    on_infeasible: OnInfeasible = "local"
    now_s: float = 0.0
    workers_begin_s: tuple[float, ...] | None = None

    def starts_in_ms(self, request: Request) -> float:
        """Time until the request's own work can begin; 0 if it asks now."""
        return max(0.0, request.starts_s - self.now_s) * 1e3

    def time_left_ms(self, request: Request) -> float:
        """Time from the begin of the request's own work until its answer is due; negative once that has passed."""
        return (request.due_s - max(self.now_s, request.starts_s)) * 1e3

    def due_in_ms(self, request: Request) -> float:
        """Time from now until the request's answer is due."""
        return (request.due_s - self.now_s) * 1e3

    def ready_ms(self, request: Request, option: ModeOption, mbps: float) -> float:
        """Time from the begin of the request's own work to its answer at `mbps` Mbit/s, with the cloud's load."""
        return option.ready_ms(mbps, self.cloud_free_in_ms - self.starts_in_ms(request))

    def meets(self, request: Request, option: ModeOption, mbps: float) -> bool:
        """Whether that answer is in time."""
        return option.meets(mbps, self.time_left_ms(request), self.cloud_free_in_ms - self.starts_in_ms(request))

    def fallback(self, request: Request) -> ModeOption:
        """The option of a request that can't meet its deadline: see `on_infeasible`."""
        local = local_option(request.options) if self.on_infeasible == "local" else None
        return local or smallest_option(request.options)

    @property
    def cloud_free_in_ms(self) -> float:
        """When the first worker can begin with another request; 0 if cloud time is not modelled."""
        begin_s = self.workers_begin_s or self.workers_free_s
        return max(0.0, min(begin_s) - self.now_s) * 1e3 if begin_s else 0.0

    def cloud_budget_ms(self, until_ms: float) -> float:
        """Worker time from now until then that isn't promised; inf if cloud time is not modelled."""
        if self.workers_free_s is None:
            return float("inf")
        budget_ms = 0.0
        for free_s in self.workers_free_s:
            left_ms = until_ms - (free_s - self.now_s) * 1e3 if free_s > self.now_s else until_ms
            if left_ms > 0:
                budget_ms += left_ms
        return budget_ms


class Choice(NamedTuple):
    """A policy's answer to one request: its mode, and whether the answer will be in time."""

    option: ModeOption
    meets: bool


class Gap(NamedTuple):
    """A certificate: the most by which a choice falls short of the optimum of its problem, as shares of a bound on it.

    Attributes:
        weight: of the weight in time.
        quality: of the weighted quality, among choices with at least that weight in time.
    """

    weight: float
    quality: float


@dataclass(frozen=True, slots=True)
class Solution:
    """A policy's answer to a problem.

    Attributes:
        choices: by request id, one for every request of the problem.
        grants_mbps: by agent id, for all requests and transfers of the agent together; agents not named keep theirs.
            Policies that choose by minimum rate leave it empty: `allocator.sharing` shares the uplink for them.
        gap: from policies that can certify one.
        likely: how probable it is that the first request's option is in time, where several rates were reckoned with.
    """

    choices: Mapping[int, Choice]
    grants_mbps: Mapping[int, float] = field(default_factory=dict)
    gap: Gap | None = field(default=None, compare=False)
    likely: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision about one request: everything that the agent acts on and the ledger records.

    Attributes:
        worker: of the cloud; -1 if nothing is sent.
        grant_mbps: the agent's share of the uplink, in force when the plan is given.
        ready_s: when the answer is predicted to be there, by that share and the transfers and work known now.
        meets: whether the policy planned it to be in time.
        estimate_mbps: the belief about the uplink.
        hedge: sent ahead of the option's payload, for the worker to answer from if the payload isn't there in time.
        rejected: why the request is not served at all; empty if it is.
        likely: how probable it is that the option itself is in time; None where one rate was taken for sure.
    """

    request_id: int
    option: ModeOption
    worker: int
    grant_mbps: float
    ready_s: float
    meets: bool
    estimate_mbps: float
    hedge: ModeOption | None = None
    rejected: str = ""
    likely: float | None = None
