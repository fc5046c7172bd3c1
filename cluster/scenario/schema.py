"""The scenario: everything an experiment is, as one validated document."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from agents.arrivals import MAX_REQUESTS, MAX_TURN_S, AnyArrivals, Arrival, ArrivalTraceError
from agents.estimators import AnyEstimator, Ewma
from agents.offer import Context, mode_options, payload_bytes
from agents.record import Slo
from allocator.policies import make_policy
from allocator.policies.optimal import Optimal
from allocator.policies.static import Static
from allocator.problem import ModeOption, OnInfeasible
from cloud.backend import OpenAIBackend
from cloud.batching import ContinuousBatching
from cluster.scenario.events import AnyEvent, Freeze, Kill, SetAllocator, SetUplink, TurnEvent, schedule
from cluster.scenario.placing import ClusterSettings
from cluster.scenario.recovery import RecoverySettings
from cluster.scenario.shipped import find_scenario
from cluster.scenario.yaml_document import Document, DocumentError
from configs.reading import is_unicode
from configs.settings import Settings
from kvcache.modes import Mode
from models.lengths import Lengths
from models.profiles import AllowedModes, ModelProfile, ProfileError, load_profile
from models.settings import ModelSettings
from netem.channels import AnyChannel
from netem.impairments import MAX_DISTINCT_LINKS, UNIMPAIRED, Impairments, LinkImpairments
from netem.link import CongestionControl


def _ray_fraction(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError(f"{value:g} can't be had from Ray: a fraction is at most 1, more must be whole")
    return value


NAME = r"^[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,63}$"  # also of folders: neither `..` nor hidden
MAX_AGENTS = 100_000
MAX_WORKERS = 10_000
MAX_STEPS = 5_000_000
MAX_TIMEOUT_MS = 86_400_000.0
MAX_SLO_MS = 3_600_000.0
MARGIN = 0.01
LEAST_MARGIN_MS = 20.0
Fraction = Annotated[float, Field(ge=0, le=1024), AfterValidator(_ray_fraction)]


class TransportSettings(Settings):
    """TCP as the agents use it, for virtual time has no packets."""

    congestion: CongestionControl = Field(default="reno", description="of those that the kernel offers")
    connections: Literal["warm", "per_request"] = Field(
        default="warm", description="kept open, or opened by each request and closed with its answer"
    )


class UplinkSettings(Settings):
    """The shared link: its true rate, what is believed of it, how it is built."""

    channel: AnyChannel = Field(description="the uplink's true rate, over time")
    estimator: AnyEstimator = Field(default_factory=Ewma, description="what the allocator believes of the rate")
    report_s: float = Field(default=1.0, ge=0.01, le=3600, description="how often the base station measures the rate")
    link: Literal["auto", "kernel", "paced"] = Field(
        default="auto", description="of live runs: kernel shaping, paced senders, or kernel where possible"
    )
    privilege: Literal["auto", "root", "userns", "sudo"] = Field(
        default="auto", description="how the helper may shape links; auto: the first that works"
    )
    transport: TransportSettings = Field(default=TransportSettings(), description="TCP, in live runs")
    verify: bool = Field(default=True, description="whether live runs measure the link first, and stop if it is wrong")
    shared: LinkImpairments = Field(default=UNIMPAIRED, description="what befalls all agents' packets")


class AgentGroup(Settings):
    """`count` equal edge agents."""

    profile: str = Field(description="what the allocator believes, and all there is where no model runs")
    model: ModelSettings | None = Field(
        default=None, description="real models, in live runs; default: only the profile"
    )
    count: int = Field(default=1, ge=1, le=MAX_AGENTS, description="agents in this group")
    weight: float = Field(default=1.0, gt=0, le=1e6, description="what their requests count for the allocator")
    deadline_ms: float | None = Field(default=None, gt=0, le=MAX_SLO_MS, description="default: the scenario's")
    ttft_ms: float | None = Field(default=None, gt=0, le=MAX_SLO_MS, description="default: the scenario's")
    tpot_ms: float | None = Field(default=None, gt=0, le=MAX_SLO_MS, description="default: the scenario's")
    link: LinkImpairments = Field(default=UNIMPAIRED, description="what befalls their packets")
    per_actor: int | None = Field(default=None, ge=1, description="default: that of all groups")
    node: str | None = Field(
        default=None, description="where they are, of cluster.nodes; default: where the run is started"
    )


class AgentsSettings(Settings):
    """The edge side. Resources are per actor; `num_gpus` holds where the cluster has GPUs, `num_cpus` always."""

    groups: list[AgentGroup] = Field(min_length=1, description="agents are numbered through all groups, from 0 on")
    per_actor: int | None = Field(default=None, ge=1, description="default: 1 up to 8 agents, then 4 actors in all")
    num_cpus: Fraction = Field(default=0.1, description="CPUs that Ray reserves for each actor")
    num_gpus: Fraction = Field(default=0.0, description="GPUs that Ray reserves for each actor, where there are GPUs")
    backlog_limit: int = Field(default=16, ge=1, description="requests waiting at one agent; more are rejected")


class CloudSettings(Settings):
    """The cloud pool. Resources are per worker."""

    workers: int = Field(default=1, ge=1, le=MAX_WORKERS, description="cloud workers in the pool; live at most 64")
    queue_limit: int = Field(default=64, ge=1, le=100_000, description="requests waiting at one worker")
    batch: int = Field(default=1, ge=1, le=64, description="requests of one model that a worker decodes together")
    batching: ContinuousBatching | None = Field(
        default=None,
        description="by iteration, as inference servers do it; default: closed batches of `batch` requests",
    )
    backend: OpenAIBackend | None = Field(
        default=None, description="in live runs, a server that answers for the workers; default: they do it themselves"
    )
    num_cpus: Fraction = Field(default=0.1, description="CPUs that Ray reserves for each worker")
    num_gpus: Fraction = Field(default=0.0, description="GPUs that Ray reserves for each worker, where there are GPUs")
    node: str | None = Field(
        default=None, description="where they are, of cluster.nodes; default: where the run is started"
    )

    @property
    def by_iteration(self) -> ContinuousBatching | None:
        """How workers batch by iteration, if they do. A server does, with a slot for each request that it is given."""
        if self.batching is None and self.backend is not None:
            slots = self.backend.at_a_time
            return ContinuousBatching(slots=slots, step_tokens=max(slots, ContinuousBatching().step_tokens))
        return self.batching

    @property
    def at_a_time(self) -> int:
        """The most requests that a worker serves at a time."""
        if self.backend is not None:
            return self.backend.at_a_time
        return self.batch if self.batching is None else self.batching.slots


class AllocatorSettings(Settings):
    """One allocator that has its turn. A name alone stands for the policy of that name."""

    policy: str = Field(description="a policy that ships with Scout, or `package.module:Class`")
    label: str | None = Field(default=None, pattern=NAME, description="default: the policy, with `+hedge` if it hedges")
    hedge: bool | None = Field(default=None, description="default: the scenario's")
    shed: bool | None = Field(
        default=None, description="reject what can't be in time; default: the policy's, unless on_infeasible is late"
    )
    cloud_time: bool = Field(default=True, description="whether it knows when workers are free, or only the uplink")
    modes: AllowedModes | None = Field(default=None, description="which it may assign; default: all allowed")
    estimator: AnyEstimator | None = Field(default=None, description="default: the uplink's")

    @property
    def name(self) -> str:
        """What its turn is called."""
        return self.label or self.policy + ("+hedge" if self.hedge else "")


def _policy_alone(value: Any) -> Any:
    return {"policy": value} if isinstance(value, str) else value


AnyAllocator = Annotated[
    AllocatorSettings, BeforeValidator(_policy_alone, json_schema_input_type=str | AllocatorSettings)
]


class Scenario(Settings):
    """One experiment. `deadline_ms` counts from a request's intended start."""

    name: str = Field(pattern=NAME, description="of run folders and tables")
    description: str = Field(default="", description="shown above the table")
    seed: int = Field(default=42, ge=0, lt=2**32, description="of the arrivals, the channel and random events")
    deadline_ms: float = Field(gt=0, le=MAX_SLO_MS, description="from a request's intended start to its whole answer")
    ttft_ms: float | None = Field(
        default=None, gt=0, le=MAX_SLO_MS, description="from its intended start to its answer's first token, at most"
    )
    tpot_ms: float | None = Field(
        default=None, gt=0, le=MAX_SLO_MS, description="mean time from token to token of its answer, at most"
    )
    timeout_ms: float | None = Field(
        default=None, gt=0, le=MAX_TIMEOUT_MS, description="then a request has failed; default 4 deadlines"
    )
    lateness_limit_ms: float = Field(default=50.0, gt=0, description="p99 above which a live run marks itself invalid")
    context: Context = Field(
        default="resident", description="whether the cloud holds the contexts that `scout` needs, or they are sent"
    )
    modes: AllowedModes | None = Field(default=None, description="allowed modes; default: all of a profile")
    allocators: list[AnyAllocator] = Field(
        default=[AllocatorSettings(policy="deadline")], min_length=1, description="one turn each, in this order"
    )
    hedge: bool | None = Field(
        default=None, description="reckon with all rates, and send a small mode ahead of caches; default: the policy's"
    )
    on_infeasible: OnInfeasible = Field(default="local", description="the fate of a request that can't be in time")
    margin_ms: float | None = Field(
        default=None, ge=0, description="answers are planned so much before the deadline; default 1 %, at least 20 ms"
    )
    uplink: UplinkSettings = Field(description="the shared link")
    arrivals: AnyArrivals = Field(description="when requests are released")
    agents: AgentsSettings = Field(description="the edge side")
    cloud: CloudSettings = Field(default=CloudSettings(), description="the cloud side")
    events: list[AnyEvent] = Field(default=[], max_length=1000, description="interventions and faults of every turn")
    cluster: ClusterSettings | None = Field(
        default=None, description="several Ray nodes, for live runs; default: all is on the machine that starts the run"
    )
    recovery: RecoverySettings = Field(
        default=RecoverySettings(), description="what is done about processes that die or don't answer"
    )
    base_dir: Path = Field(default=Path(), exclude=True, description="where relative paths start")

    @classmethod
    def load(cls, path: str | Path, allocators: list[str] | None = None) -> Self:
        """Read and check a scenario.

        Args:
            path: its file, or the name of one that ships with the project, such as `congestion`.
            allocators: instead of the scenario's own.

        Raises:
            DocumentError: in one or two lines: file, line, key, what is wrong and what is allowed.
        """
        return cls.from_document(Document.read(find_scenario(path)), allocators)

    @classmethod
    def from_document(cls, document: Document, allocators: Sequence[Any] | None = None) -> Self:
        """Check a document; relative paths in it start where its file is. Raises as `load` does.

        Args:
            allocators: instead of the document's own: their names, or entries as it would have them.
        """
        base_dir = document.path.resolve().parent
        if "base_dir" in document.data:
            raise document.error(("base_dir",), "unknown key; relative paths start in the scenario file's folder")
        if not is_unicode(str(base_dir)):
            raise DocumentError(f"{str(base_dir)!a}: the name of this folder isn't in UTF-8")
        data = document.data | {"base_dir": base_dir}
        if allocators:
            data |= {"allocators": [_named(data.get("allocators"), name) for name in allocators]}
        try:
            scenario = cls.model_validate(data, context={"base_dir": base_dir})
        except ValidationError as error:
            raise document.explain(error, cls) from None
        for where, problem in scenario._problems():
            raise document.error(where, problem)
        return scenario

    @property
    def allocator_names(self) -> list[str]:
        """What the turns are called, in order."""
        return [allocator.name for allocator in self.allocators]

    @property
    def policies(self) -> list[str]:
        """The policies that the scenario names, in order; they may be any class to import."""
        events = [event.policy for event in self.events if isinstance(event, SetAllocator)]
        return [*(allocator.policy for allocator in self.allocators), *events]

    @property
    def planning_margin_ms(self) -> float:
        """How much before their deadline answers are planned."""
        return max(LEAST_MARGIN_MS, MARGIN * self.deadline_ms) if self.margin_ms is None else self.margin_ms

    @cached_property
    def agent_slos(self) -> list[Slo]:
        """What the requests of every agent must keep, by agent id: its group's own limits, or the scenario's."""
        found: list[Slo] = []
        for g in self.agents.groups:
            slo = Slo(g.deadline_ms or self.deadline_ms, g.ttft_ms or self.ttft_ms, g.tpot_ms or self.tpot_ms)
            found += [slo] * g.count
        return found

    @cached_property
    def agent_weights(self) -> list[float]:
        """The weight of every agent's requests, by agent id."""
        return [g.weight for g in self.agents.groups for _ in range(g.count)]

    @cached_property
    def agent_profiles(self) -> list[ModelProfile]:
        """The profile of every agent, by agent id."""
        profiles = [load_profile(group.profile, self.base_dir) for group in self.agents.groups]
        return [
            profile for group, profile in zip(self.agents.groups, profiles, strict=True) for _ in range(group.count)
        ]

    @cached_property
    def impairments(self) -> Impairments:
        """Delay, jitter, loss and reordering of all paths."""
        return Impairments.of_groups(self.uplink.shared, ((g.count, g.link) for g in self.agents.groups))

    @cached_property
    def models(self) -> list[ModelProfile]:
        """The distinct profiles; a frame's `model` is an index into this list."""
        found: list[ModelProfile] = []
        for profile in self.agent_profiles:
            if profile not in found:
                found.append(profile)
        return found

    @cached_property
    def real_models(self) -> dict[int, ModelSettings]:
        """What runs for real in a live run, by index in `models`."""
        names = [profile.name for profile in self.models]
        by_profile = {load_profile(g.profile, self.base_dir).name: g.model for g in self.agents.groups if g.model}
        return {names.index(name): settings for name, settings in by_profile.items()}

    @cached_property
    def options(self) -> dict[str, tuple[ModeOption, ...]]:
        """What agents offer the allocator, by profile name; agents of one profile share the very same tuple."""
        return {p.name: mode_options(p, self.modes_of(p), self.context, streams=self.streams) for p in self.models}

    @property
    def streams(self) -> bool:
        """Whether cloud workers send the first token of an answer ahead."""
        return self.cloud.by_iteration is not None

    def modes_of(self, profile: ModelProfile) -> list[Mode]:
        """Allowed modes of a profile, in its own order."""
        return [mode for mode in profile.modes if self.modes is None or mode in self.modes]

    @property
    def request_timeout_ms(self) -> float:
        """When a request without an answer has failed."""
        if self.timeout_ms is not None:
            return self.timeout_ms
        return 4 * max([self.deadline_ms, *(group.deadline_ms or 0.0 for group in self.agents.groups)])

    @property
    def agents_per_actor(self) -> int:
        """How many agents share a process: one each up to a handful, since each process costs 0.3 s of CPU to start."""
        agents = len(self.agent_profiles)
        return self.agents.per_actor or (1 if agents <= 8 else -(-agents // 4))

    @cached_property
    def hosts(self) -> list[range]:
        """The agents that share a process, for each process: neighbours in one place, whatever their group."""
        found: list[range] = []
        end, before = 0, None
        for group in self.agents.groups:
            per_actor = group.per_actor or self.agents_per_actor
            start = end
            end += group.count
            if before == (per_actor, group.node):
                start = found.pop().start  # which may have room left
            found += [range(first, min(first + per_actor, end)) for first in range(start, end, per_actor)]
            before = per_actor, group.node
        return found

    @cached_property
    def host_of(self) -> list[int]:
        """The index in `hosts` of every agent's, by agent id."""
        return [number for number, agents in enumerate(self.hosts) for _ in agents]

    def node_of(self, agent_id: int) -> str | None:
        """Where an agent is: a key of cluster.nodes, or None for the station."""
        last = -1
        for group in self.agents.groups:
            last += group.count
            if agent_id <= last:
                return group.node
        raise IndexError(agent_id)

    @property
    def is_spread(self) -> bool:
        """Whether any agent or worker is on another node than the station."""
        ends = list(accumulate(group.count for group in self.agents.groups))
        return any(self.is_relayed(end - 1) for end in ends)

    def is_relayed(self, agent_id: int) -> bool:
        """Whether any of an agent's connections goes by the station's relay."""
        station = self.cluster.station if self.cluster is not None else None
        return any(node not in (None, station) for node in (self.cloud.node, self.node_of(agent_id)))

    @property
    def peak_mbps(self) -> float:
        """The channel's highest rate in a turn, events included: link-layer Mbit/s."""
        turn_s = self.schedule()[-1].intended_s + self.request_timeout_ms / 1e3
        played = takewhile(lambda change: change.at_s <= turn_s, self.uplink.channel.play(self.seed))
        squeezed = [step.mbps for event in self.events if isinstance(event, SetUplink) for step in event.steps]
        return max([change.mbps for change in played] + squeezed)

    def schedule(self) -> list[Arrival]:
        """All arrivals; the same for every allocator and engine."""
        return self.arrivals.schedule(len(self.agent_profiles), np.random.default_rng([self.seed, 1]))

    @cached_property
    def longest(self) -> Lengths | None:
        """Of all requests, the longest context and the longest answer; None if all have their profile's own lengths."""
        if not self.arrivals.sized:
            return None
        lengths = [arrival.lengths for arrival in self.schedule() if arrival.lengths is not None]
        return Lengths(max(size.context_tokens for size in lengths), max(size.output_tokens for size in lengths))

    def event_schedule(self) -> list[tuple[float, TurnEvent]]:
        """(seconds since the turn's start, event), in order of time; the same for every allocator and engine."""
        return schedule(self.events, np.random.default_rng([self.seed, 2]))

    @property
    def first_mbps(self) -> float:
        """The channel's first rate."""
        return next(iter(self.uplink.channel.play(self.seed))).mbps

    def resolved(self) -> dict[str, Any]:
        """The scenario with every default written out."""
        return self.model_dump(mode="json")

    def refuses(self, allocator: AllocatorSettings) -> str | None:
        """Why this allocator can't serve the scenario's agents; None if it can."""
        name = allocator.name
        try:
            policy = make_policy(allocator.policy)
        except ValueError as error:
            return str(error)
        if isinstance(policy, Optimal):
            from allocator.solver.milp import LEAST_WEIGHT_SHARE, too_far_apart  # SciPy takes a second to import

            least, in_all = (
                min(self.agent_weights),
                2 * sum(self.agent_weights),
            )  # one asks and one sends, of each agent
            if least < LEAST_WEIGHT_SHARE * in_all:
                return too_far_apart(least, in_all)
        for profile in self.models:
            offered = [m for m in self.modes_of(profile) if allocator.modes is None or m in allocator.modes]
            if isinstance(policy, Static) and policy.mode not in offered:
                return f"{name}: {profile.name} may not use '{policy.mode}', only {', '.join(map(str, offered))}"
            if not offered:
                only = ", ".join(map(str, self.modes_of(profile)))
                return f"{name}: {profile.name} has none of the allocator's modes, only {only}"
        return None

    def _problems(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """What single fields can't show: (where, what is wrong and what is allowed)."""
        for i, group in enumerate(self.agents.groups):
            where = ("agents", "groups", i, "profile")
            try:
                profile = load_profile(group.profile, self.base_dir)
                for mode in self.modes or ():
                    if mode in profile.modes:
                        payload_bytes(profile, mode, self.context)
            except (ProfileError, ValueError) as error:
                yield where, str(error)
                return
            modes = self.modes_of(profile)
            if not modes:
                yield where, f"{profile.name} has none of the allowed modes, only {', '.join(map(str, profile.modes))}"
                return
            if self.arrivals.sized and (problem := _no_lengths(group, profile)):
                yield where, problem
                return
            compute_ms, fastest = min((profile.compute_ms(mode), str(mode)) for mode in modes)
            deadline_ms = group.deadline_ms or self.deadline_ms
            if compute_ms > deadline_ms and not self.arrivals.sized:
                yield (
                    (*where[:-1], "deadline_ms") if group.deadline_ms else ("deadline_ms",),
                    f"{deadline_ms:g} ms is shorter than the compute of {profile.name} alone: "
                    f"its fastest allowed mode, {fastest}, takes {compute_ms:g} ms before any transfer",
                )
            same = next(g for g in self.agents.groups if g.profile == group.profile)
            if same.model != group.model:
                yield (
                    (*where[:-1], "model"),
                    f"another group has profile {group.profile} with another model; give it a profile of its own",
                )
        if self.cloud.backend is not None and (problem := self._unservable()):
            yield ("cloud", "backend"), problem
        yield from self._misplaced()
        if len(links := {group.link.model_dump_json() for group in self.agents.groups}) > MAX_DISTINCT_LINKS:
            yield ("agents", "groups"), f"{len(links)} different links; there may be {MAX_DISTINCT_LINKS}"
            return
        agents = len(self.agent_profiles)
        if agents > MAX_AGENTS:
            yield ("agents", "groups"), f"{agents} agents in all; there may be {MAX_AGENTS}"
        known = {mode for profile in self.models for mode in profile.modes}
        there_are = ", ".join(sorted(map(str, known)))
        for i, mode in enumerate(self.modes or ()):
            if mode not in known:
                yield ("modes", i), f"no agent's profile has mode '{mode}'; there are {there_are}"
        yield from self._unkeepable()
        for i, allocator in enumerate(self.allocators):
            problem = self.refuses(allocator)
            if problem is None and self.allocator_names.index(allocator.name) != i:
                problem = f"allocator {allocator.name!r} is there twice; give one a `label`"
            if problem is not None:
                yield ("allocators", i), problem
        if self.margin_ms is not None and self.margin_ms >= self.deadline_ms:
            yield ("margin_ms",), f"{self.margin_ms:g} ms leaves nothing of the deadline of {self.deadline_ms:g} ms"
        if too_long := self._too_long():
            yield too_long
            return
        try:
            arrivals = self.schedule()
        except ArrivalTraceError as error:
            yield ("arrivals", "path"), str(error)
            return
        if not arrivals:
            yield ("arrivals",), "no request arrives in this time; raise rate_per_s or duration_s"
            return
        if (rules := self.cloud.by_iteration) is not None:
            yield from self._unbatchable(rules, arrivals)
        last_s = arrivals[-1].intended_s + self.request_timeout_ms / 1e3
        for i, event in enumerate(self.events):
            if problem := self._problem_of(event, last_s):
                yield ("events", i), problem

    def _unbatchable(
        self, batching: ContinuousBatching, arrivals: Sequence[Arrival]
    ) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Why workers can't batch by iteration."""
        if self.cloud.batch != 1:
            yield (
                ("cloud", "batch"),
                "is for closed batches; with `batching`, `slots` says how many are served at a time",
            )
        if self.real_models:
            yield ("cloud", "batching"), "real models are served in closed batches: leave it out, and set `batch`"
        lengths = {arrival.lengths for arrival in arrivals}
        own = [profile.own_lengths for profile in self.models] if None in lengths else []
        needed = max(sum(size) for size in [*own, *lengths] if size is not None)
        if batching.kv_tokens is not None and needed > batching.blocks_tokens:
            yield (
                ("cloud", "batching", "kv_tokens"),
                f"{batching.kv_tokens} positions are fewer than the longest request's {needed} of context and answer",
            )

    def _unservable(self) -> str | None:
        """Why an inference server of someone else's can't serve what agents may send; None if it can."""
        if any(group.model is not None for group in self.agents.groups):
            return "real models and a server together aren't supported; leave `model` out of agents.groups"
        caches = {mode for profile in self.models for mode in self.modes_of(profile) if mode.is_cache}
        if caches:
            named = ", ".join(sorted(map(str, caches)))
            return f"a server can't take caches ({named}); allow only prompt, scout and local by `modes`"
        return None

    def _unkeepable(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Limits that leave nothing to plan, or that nothing can be told of."""
        groups = self.agents.groups
        own: list[tuple[tuple[str | int, ...], Scenario | AgentGroup]] = [((), self)]
        for where, limits in own + [(("agents", "groups", i), group) for i, group in enumerate(groups)]:
            for name in ("deadline_ms", "ttft_ms"):
                limit_ms = getattr(limits, name)
                if limit_ms is not None and self.planning_margin_ms >= limit_ms and (where or name != "deadline_ms"):
                    margin = f"the planning margin (margin_ms) of {self.planning_margin_ms:g} ms"
                    yield (*where, name), f"{margin} leaves nothing of {limit_ms:g} ms"
            if limits.tpot_ms is not None and not self.streams:
                yield (*where, "tpot_ms"), "answers come whole: cloud.batching or a cloud.backend sends tokens ahead"
        longest_ms = max(slo.deadline_ms for slo in self.agent_slos)
        if self.request_timeout_ms < longest_ms:
            yield ("timeout_ms",), f"{self.timeout_ms:g} ms is shorter than the deadline of {longest_ms:g} ms"

    def _misplaced(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Nodes that are named and don't exist."""
        named: list[tuple[tuple[str | int, ...], str | None]] = [(("cloud", "node"), self.cloud.node)]
        named += [(("agents", "groups", i, "node"), group.node) for i, group in enumerate(self.agents.groups)]
        if self.cluster is None:
            yield from ((where, "there is no `cluster` with nodes to choose from") for where, node in named if node)
            return
        for where, node in [*named, (("cluster", "station"), self.cluster.station)]:
            if problem := self.cluster.problem_of(node):
                yield where, problem

    def _too_long(self) -> tuple[tuple[str | int, ...], str] | None:
        """Where it is written that a turn has no end that anybody waits for, and how long it would be."""
        requests, last_s = self.arrivals.extent(len(self.agent_profiles))
        if requests > MAX_REQUESTS:
            return ("arrivals",), f"about {requests:,.0f} requests a turn; there may be {MAX_REQUESTS:,}"
        if last_s > MAX_TURN_S:
            days = f"{last_s / 86_400:,.1f} days until the last request of a turn"
            return ("arrivals",), f"{days}; there may be {MAX_TURN_S / 86_400:g}"
        turn_s = last_s + self.request_timeout_ms / 1e3
        steps = {
            ("uplink", "channel"): (self.uplink.channel.changes_within(turn_s), "changes of the channel's rate"),
            ("uplink", "report_s"): (turn_s / self.uplink.report_s, "reports of the rate"),
        }
        for where, (number, what) in steps.items():
            if number > MAX_STEPS:
                return where, f"about {number:,.0f} {what} in a turn of {turn_s:g} s; there may be {MAX_STEPS:,}"
        return None

    def _problem_of(self, event: TurnEvent, last_s: float) -> str | None:
        """Why an event can't be played in a turn that ends at `last_s` at the latest."""
        if event.at_s is None and event.between is None:
            return "at_s is missing (or between: [first, last] for a random time)"
        latest_s = event.between[1] if event.between else event.at_s or 0.0
        if latest_s > last_s:
            return f"{latest_s:g} s is after the turn's end: its last request ends by {last_s:g} s"
        if isinstance(event, Kill | Freeze) and event.part == "relay" and not self.is_spread:
            return "there is no relay: neither agents nor workers are on another node than the station"
        if isinstance(event, SetAllocator):
            for allocator in self.allocators:
                other = allocator.model_copy(update={"policy": event.policy, "label": event.policy})
                if problem := self.refuses(other):
                    return problem
        return event.problem(len(self.agent_profiles), self.cloud.workers)


def _no_lengths(group: AgentGroup, profile: ModelProfile) -> str | None:
    """Why a group's requests can't have lengths of their own; None if they can."""
    instead = "choose another, or `lengths: profile` under `arrivals`, which takes only the times of requests"
    if group.model is not None:
        return f"its real models answer their own examples, of whose lengths the arrivals know nothing: {instead}"
    if profile.lengths is None:
        return f"profile {profile.name} has no `lengths`, so all its requests are alike: {instead}"
    return None


def _named(written: Any, name: Any) -> Any:
    """The allocator that a scenario calls `name`, or the policy of that name; an entry stands for itself."""
    for entry in written if isinstance(written, list) else ():
        try:
            if AllocatorSettings.model_validate(_policy_alone(entry)).name == name:
                return entry
        except ValidationError:
            continue  # found again, and explained, where the whole document is checked
    return name


__all__ = ["DocumentError", "Scenario"]
