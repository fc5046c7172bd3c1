"""From a scenario to the plain objects of a run.

Engines differ in the link and the clock that they put in, and only the live one runs models.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from agents.agent import AgentSettings, Terms
from agents.edge import EdgeRuntime, ProfileEdge
from agents.host import AgentHost, Seat
from agents.offer import Offer, payload_bytes
from agents.uplink import Uplink
from allocator.online.interfaces import Link
from allocator.online.service import Allocator, Rules
from allocator.policies import make_policy
from allocator.policies.base import decided
from allocator.problem import AgentInfo, ModeOption
from cloud.continuous import ContinuousWorker
from cloud.dispatch import LeastLoaded
from cloud.frames import MAX_HEDGE_BYTES
from cloud.reception import Reception
from cloud.runtime import CloudRuntime, ProfileCloud
from cloud.worker import AnyWorker, Worker
from cluster.scenario.schema import AllocatorSettings, Scenario
from models.profiles import ModelProfile

MAX_REAL_BODY_BYTES = 2**34


def make_host(
    scenario: Scenario, agent_ids: Sequence[int], uplink_of: Callable[[int], Uplink], models: bool = False
) -> AgentHost:
    """The host of some of the scenario's agents.

    Args:
        uplink_of: gives each agent id its uplink.
        models: whether to run real models where the scenario has them.
    """
    return AgentHost([_make_seat(scenario, agent_id, uplink_of(agent_id), models) for agent_id in agent_ids])


def make_allocator(
    scenario: Scenario, settings: AllocatorSettings, link: Link, ceilings_mbps: Sequence[float] = ()
) -> Allocator:
    """One of the scenario's allocators, which has seen nothing yet.

    Args:
        ceilings_mbps: what each agent's connection can use of any grant, by agent id, where that is known.
    """
    estimator = settings.estimator or scenario.uplink.estimator
    return Allocator(
        [
            AgentInfo(agent_id, profile.kv_bytes, ceilings_mbps[agent_id] if ceilings_mbps else math.inf)
            for agent_id, profile in enumerate(scenario.agent_profiles)
        ],
        make_policy(settings.policy),
        estimator.model_copy(deep=True),
        LeastLoaded(scenario.cloud.workers, scenario.cloud.batch, scenario.cloud.by_iteration),
        link,
        Rules(
            cloud_time=settings.cloud_time,
            on_infeasible=scenario.on_infeasible,
            hedge=_hedge(scenario, settings),
            report_s=scenario.uplink.report_s,
            shed=_shed(scenario, settings),
        ),
    )


def _hedge(scenario: Scenario, settings: AllocatorSettings) -> bool | None:
    """Whether an allocator hedges; None: as its policy does."""
    return scenario.hedge if settings.hedge is None else settings.hedge


def _shed(scenario: Scenario, settings: AllocatorSettings) -> bool | None:
    """Whether an allocator sheds; None: as its policy does. A scenario that wants late answers gets them."""
    return False if settings.shed is None and scenario.on_infeasible == "late" else settings.shed


def make_terms(scenario: Scenario, settings: AllocatorSettings) -> Terms:
    """What agents must know of an allocator before they ask it."""
    policy = make_policy(settings.policy)
    return Terms(
        modes=None if settings.modes is None else frozenset(settings.modes),
        # The published policies know nothing of staying local because the uplink is busy.
        fall_back=scenario.on_infeasible == "local" and policy.minimum_rate,
        edge_answers=decided(policy, "hedges", _hedge(scenario, settings)),
        shed=decided(policy, "sheds", _shed(scenario, settings)),
        margin_ms=scenario.planning_margin_ms,
    )


def make_worker(scenario: Scenario, models: bool = False) -> AnyWorker:
    """A cloud worker, wherever its requests come from.

    Args:
        models: as above, or to pass requests on to a server where the scenario has one.
    """
    if models and scenario.cloud.backend is not None:
        from cloud.openai import OpenAIServer  # aiohttp takes half a second to import
        from cloud.passing_on import ServerWorker

        server = OpenAIServer(scenario.cloud.backend)
        return ServerWorker(ProfileCloud(scenario.models), scenario.cloud.queue_limit, server, scenario.seed)
    if (rules := scenario.cloud.by_iteration) is not None:
        return ContinuousWorker(ProfileCloud(scenario.models), scenario.cloud.queue_limit, rules)
    runtime: CloudRuntime = ProfileCloud(scenario.models)
    if models and scenario.real_models:
        from cloud.model_cloud import ModelCloud  # torch and transformers are loaded where models run, nowhere else
        from models.hf.device import use_device

        use_device(scenario.cloud.num_gpus)
        runtime = ModelCloud(scenario.models, scenario.real_models, scenario.base_dir, scenario.cloud.batch)
    return Worker(runtime, scenario.cloud.queue_limit, scenario.cloud.batch)


def make_reception(scenario: Scenario, worker: AnyWorker) -> Reception:
    """The worker's connections, which take this scenario's requests and nothing larger."""
    largest = max(
        payload_bytes(profile, mode, scenario.context, scenario.longest)
        for profile in scenario.models
        for mode in scenario.modes_of(profile)
    )
    warm = scenario.uplink.transport.connections == "warm"
    if scenario.real_models:  # a real body is decoded as it comes, and bounded by the model's own sizes
        largest = MAX_REAL_BODY_BYTES
    return Reception(
        worker,
        max_body_bytes=max(largest, MAX_HEDGE_BYTES),
        # Each agent keeps one connection; while it replaces a broken one, the old one may linger. One that is opened
        # per request stays until its answer, and so many may wait for theirs.
        max_connections=2 * len(scenario.agent_profiles)
        + (0 if warm else scenario.cloud.queue_limit + scenario.cloud.at_a_time)
        + 16,
    )


def _make_seat(scenario: Scenario, agent_id: int, uplink: Uplink, models: bool) -> Seat:
    profile = scenario.agent_profiles[agent_id]
    offer = Offer(profile, tuple(scenario.modes_of(profile)), scenario.context, scenario.streams)
    slo = scenario.agent_slos[agent_id]
    settings = AgentSettings(
        agent_id=agent_id,
        offer=offer,
        model=scenario.models.index(profile),
        options=_options(scenario, profile, models),
        deadline_ms=slo.deadline_ms,
        ttft_ms=slo.ttft_ms,
        tpot_ms=slo.tpot_ms,
        timeout_ms=scenario.request_timeout_ms,
        backlog_limit=scenario.agents.backlog_limit,
        weight=scenario.agent_weights[agent_id],
        resend=scenario.recovery.resend,
    )
    return Seat(settings, _make_edge(scenario, settings.model, offer, models), uplink)


def _options(scenario: Scenario, profile: ModelProfile, models: bool) -> tuple[ModeOption, ...]:
    """What an agent offers; with real models, the decoder is the edge's model for caches, and the cloud's for the rest.

    See `ModelCloud.job_of`, which tells decoders apart in the worker.
    """
    options = scenario.options[profile.name]
    real = scenario.real_models.get(scenario.models.index(profile)) if models else None
    if real is None:
        return options
    decoder = {
        is_cache: (real.source(name, scenario.base_dir), real.weights, real.dtype, real.seed)
        for is_cache, name in ((True, real.edge), (False, real.cloud))
    }
    return tuple(replace(option, decoder=decoder[option.mode.is_cache]) for option in options)


def _make_edge(scenario: Scenario, model: int, offer: Offer, models: bool) -> EdgeRuntime:
    real = scenario.real_models.get(model)
    if models and real is not None:
        from agents.model_edge import ModelEdge
        from models.hf.device import use_device

        use_device(scenario.agents.num_gpus)
        return ModelEdge(real, offer.profile, offer.modes, offer.context, scenario.base_dir)
    return ProfileEdge(offer)
