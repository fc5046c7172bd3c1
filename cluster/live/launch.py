"""One run from scenario to run folder: set up, run, account, tear down, whatever happens in between."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from cluster.interrupts import Interrupts, ignore
from cluster.live.engine import LiveEngine, Report
from cluster.live.nodes import Layout, lay_out
from cluster.live.other_nodes import OtherNodes
from cluster.live.placement import Placement, place
from cluster.live.preflight import check_backend, check_models, check_size
from cluster.live.ray_session import RaySession, ray_session
from cluster.run_folder import ledger
from cluster.run_folder.accounting import INTERRUPTED, begin, finish
from cluster.run_folder.result import RunResult
from cluster.scenario.schema import Scenario
from netem.checks.verify import verify_link
from netem.helper.session import LinkSession, LinkUnavailable
from netem.impairments import Impairment, Impairments, LinkImpairments
from netem.relay.session import RelaySession
from netem.wire import MIN_SHAPED_MBPS
from reports import files
from reports.schema import Summary

HANDLERS_WAIT_S = 0.2
RELAYED, SPARE_CONNECTIONS = 4, 256  # of an agent and a worker: two ways, and lost ones that linger
TRIED = LinkImpairments(up=Impairment(delay_ms=1.0), down=Impairment(delay_ms=1.0))


def run_live(
    scenario: Scenario,
    run_dir: Path,
    address: str | None,
    report: Report,
    interrupts: Interrupts,
    watching: AbstractContextManager[object],
) -> Summary:
    """Run `scenario` live; the run folder and the returned summary are complete even if the run was cut short.

    Args:
        report: takes what happens, in lines.
        interrupts: entered already; once the agents ask, they end the run with a partial result.
        watching: entered while the agents ask; shows the user how the run goes.

    Raises:
        ModelsUnavailable, RayUnavailable, PlacementError, LinkUnavailable, KeyboardInterrupt: nothing was started.
    """
    check_size(scenario)
    check_models(scenario)
    check_backend(scenario)
    check_impairments(scenario)
    interrupts.check()
    facts = begin(scenario, run_dir, "live")
    with ray_session(address) as session:
        interrupts.check()
        placement = _placed(scenario, session)
        if placement.notice:
            report(placement.notice)
        first_mbps = max(next(iter(scenario.uplink.channel.play(scenario.seed))).mbps, MIN_SHAPED_MBPS)
        agents = len(scenario.agent_profiles)
        grant_mbps = max(first_mbps / agents, MIN_SHAPED_MBPS)
        with LinkSession.start(
            scenario.uplink.link,
            agents=agents,
            workers=scenario.cloud.workers,
            channel_mbps=first_mbps,
            grant_mbps=grant_mbps,
            privilege=scenario.uplink.privilege,
            congestion=scenario.uplink.transport.congestion,
            impairments=scenario.impairments,
        ) as link:
            if link.fallback_reason:
                report(f"link: user-space pacing, less exact than the kernel's: {link.fallback_reason}")
            facts.link, facts.privilege, facts.fallback_reason = link.kind, link.privilege, link.fallback_reason
            interrupts.check()
            if scenario.uplink.verify:
                verifying = verify_link(link, agents, first_mbps, grant_mbps, scenario.impairments)
                facts.verified = asyncio.run(verifying)
            facts.write(run_dir / files.RUN)
            interrupts.check()
            with _joined(scenario, placement, session, link, report) as others:
                engine = LiveEngine(scenario, run_dir, session, placement, link, report, others)
                result = asyncio.run(_until_done_or_stopped(engine, interrupts, watching))
                _account(others, result)
    for turn in result.turns:
        ledger.read_journals(run_dir, turn)
    return finish(scenario, run_dir, facts, result)


def _placed(scenario: Scenario, session: RaySession) -> Placement | Layout:
    """Raises PlacementError: the actors don't fit."""
    if scenario.cluster is None:
        return place(scenario, session.cpus, session.gpus, session.gpus_in_all)
    return lay_out(scenario, session.nodes(), session.node_id)


@contextmanager
def _joined(
    scenario: Scenario, placement: Placement | Layout, session: RaySession, link: LinkSession, report: Report
) -> Iterator[OtherNodes | None]:
    """The other nodes that a run has actors on, if any, each examined and found good enough.

    Raises:
        LinkUnavailable: one isn't.
    """
    if not isinstance(placement, Layout) or not placement.remote():
        yield None
        return
    assert scenario.cluster is not None
    agents, workers = len(scenario.agent_profiles), scenario.cloud.workers
    limit = RELAYED * agents * workers + SPARE_CONNECTIONS
    with RelaySession(link.socket_path, placement.station.address, limit, scenario.cluster.port or 0) as relay:
        others = OtherNodes(scenario, placement, session, relay)
        others.examine()
        for line in others.found():
            report(line)
        yield others


def _account(others: OtherNodes | None, result: RunResult) -> None:
    if others is not None:
        result.nodes, result.relay = asyncio.run(others.account())


def check_impairments(scenario: Scenario) -> None:
    """Try delay, loss and so on on the smallest link, before anything else is started.

    Raises:
        LinkUnavailable: this machine has none of it; with the ways out.
    """
    if not scenario.impairments.active:
        return
    try:
        LinkSession.start(
            scenario.uplink.link,
            agents=1,
            workers=1,
            channel_mbps=1.0,
            grant_mbps=1.0,
            privilege=scenario.uplink.privilege,
            impairments=Impairments(shared=TRIED),
        ).stop()
    except LinkUnavailable as error:
        raise LinkUnavailable(
            f"{error}; or remove `link` of agents.groups and `shared` of uplink from the scenario, or run it with "
            "--engine simulated, which reckons with their means"
        ) from None


async def _until_done_or_stopped(
    engine: LiveEngine, interrupts: Interrupts, watching: AbstractContextManager[object]
) -> RunResult:
    loop = asyncio.get_running_loop()
    interrupts.hand_to(partial(loop.call_soon_threadsafe, engine.stop, INTERRUPTED))
    awake = asyncio.create_task(_stay_awake())
    try:
        with watching:
            return await engine.run()
    finally:
        interrupts.hand_to(ignore)
        awake.cancel()


async def _stay_awake() -> None:
    """A signal that another thread got doesn't wake the loop; its handler runs when the loop next does something."""
    while True:
        await asyncio.sleep(HANDLERS_WAIT_S)
