"""Every event on virtual time: it is recorded, it has its effect, and the ledger balances."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from agents.record import Status
from cluster.run_folder.ledger import assemble
from cluster.run_folder.result import RunResult
from cluster.scenario.events import EVENTS
from cluster.scenario.schema import DocumentError, Scenario
from cluster.simulated.engine import SimulatedEngine
from tests.support.commands import CONFIGS

Write = Callable[..., Path]
AT_S = 3.0
BACK_S = AT_S + 3
STAYS_AWAY = {"restarts": 0, "resend": False}
SMALL = {"groups": [{"profile": "tiny-profiles.yaml/small", "count": 4}], "per_actor": 2}
BASE = {
    "agents": SMALL,
    "arrivals": {"kind": "poisson", "rate_per_s": 3.0, "duration_s": 10},
    "allocators": ["deadline", "model_aware"],
    "uplink": {"channel": {"kind": "constant", "mbps": 20}},
    "modes": ["int8", "int4", "prompt"],
    "on_infeasible": "late",
}


def play(scenario: Write, *events: dict[str, Any], **changes: Any) -> tuple[Scenario, RunResult]:
    loaded = Scenario.load(scenario(**BASE | changes, events=list(events)))
    return loaded, SimulatedEngine(loaded).run()


def ledger(loaded: Scenario, result: RunResult) -> pd.DataFrame:
    """The ledger, which has a row for every arrival of every turn."""
    assert not result.problems
    rows = assemble(result.turns, loaded, "lost")
    assert len(rows) == len(loaded.schedule()) * len(loaded.allocators)
    assert not rows.reason.eq("lost").any()
    return rows


def recorded(result: RunResult, turn: int = 0) -> list[tuple[float, str, str]]:
    return [(event.at_s, event.kind, event.text) for event in result.turns[turn].timeline.events]


def uplink(rows: pd.DataFrame, result: RunResult) -> None:
    moments = result.turns[0].timeline.moments
    assert {m.channel_mbps for m in moments if AT_S < m.at_s < 4.9} == {4}
    assert {m.channel_mbps for m in moments if m.at_s < AT_S or m.at_s > 5.1} == {20}
    assert all(m.used_mbps < 4.01 for m in moments if AT_S + 0.3 < m.at_s < 4.9)


def deadline(rows: pd.DataFrame, result: RunResult) -> None:
    assert (rows.deadline_ms == [1500 if at_s > AT_S else 700 for at_s in rows.intended_s]).all()
    assert (rows.interventions == (rows.intended_s >= AT_S)).all()


def allocator(rows: pd.DataFrame, result: RunResult) -> None:
    assert set(rows[rows.intended_s > AT_S]["mode"]) == {"prompt"}
    assert result.turns[0].timeline.moments[-1].policy == "prompt_only"


def pause(rows: pd.DataFrame, result: RunResult) -> None:
    paused = (rows.agent_id == 1) & (rows.intended_s > AT_S)
    assert paused.any() and (rows[paused].reason == "paused").all() and not (rows[~paused].reason == "paused").any()


def cut(rows: pd.DataFrame, result: RunResult) -> None:
    during = rows[(rows.agent_id == 1) & rows.intended_s.between(AT_S, AT_S + 1) & (rows.worker >= 0)]
    assert len(during) and (during.latency_ms >= (AT_S + 2 - during.intended_s) * 1e3).all()
    others = rows[(rows.agent_id != 1) & rows.intended_s.between(AT_S, AT_S + 2)]
    assert (others.status == Status.MET).mean() > 0.9


def kill(rows: pd.DataFrame, result: RunResult) -> None:
    ended_s = rows.intended_s + rows.latency_ms / 1e3
    assert set(rows[(rows.intended_s > AT_S) & (ended_s < BACK_S)].worker) <= {-1, 0}
    assert (rows[rows.intended_s > BACK_S].worker == 1).any(), "it serves again"
    assert (rows[rows.intended_s > AT_S].status == Status.MET).mean() > 0.8
    assert (rows[rows.intended_s < AT_S].worker == 1).groupby(rows.allocator).any().all(), "each turn begins with both"
    assert [entry for entry in recorded(result) if entry[0] > AT_S] == [
        (BACK_S, "recovery", "worker 1 is back after 3.0 s")
    ]


def freeze(rows: pd.DataFrame, result: RunResult) -> None:
    late = rows[(rows.worker == 0) & rows.intended_s.between(AT_S, AT_S + 1)]
    assert len(late) and (late.latency_ms >= (AT_S + 2 - late.intended_s) * 1e3).all()
    assert (rows.status != Status.FAILED).all()


EFFECTS: dict[str, tuple[dict[str, Any], Callable[[pd.DataFrame, RunResult], None]]] = {
    "uplink": ({"steps": [{"mbps": 4, "for_s": 2}]}, uplink),
    "deadline": ({"ms": 1500}, deadline),
    "allocator": ({"policy": "prompt_only"}, allocator),
    "pause": ({"agent": 1, "paused": True}, pause),
    "cut": ({"agent": 1, "for_s": 2}, cut),
    "kill": ({"part": "worker", "number": 1}, kill),
    "freeze": ({"part": "worker", "number": 0, "for_s": 2}, freeze),
    "restore": ({"agent": 1}, cut),
}


@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_is_recorded_and_has_its_effect(scenario: Write, kind: str) -> None:
    settings, shows = EFFECTS[kind]
    events = [{"kind": kind, "at_s": AT_S, **settings}]
    if kind == "restore":
        events = [{"kind": "cut", "at_s": AT_S, "agent": 1}, {"kind": kind, "at_s": AT_S + 2, **settings}]
    loaded, result = play(scenario, *events)
    shows(ledger(loaded, result), result)
    expected = "fault" if EVENTS[kind].is_fault else "intervention"
    for turn in range(2):
        assert recorded(result, turn)[0] == (AT_S, expected, str(loaded.events[0]))


def test_no_events_change_nothing(scenario: Write) -> None:
    without = SimulatedEngine(Scenario.load(scenario(**BASE))).run()
    empty = play(scenario)[1]
    assert [turn.records for turn in without.turns] == [turn.records for turn in empty.turns]
    assert [turn.timeline for turn in without.turns] == [turn.timeline for turn in empty.turns]


def test_a_killed_host_leaves_a_row_of_every_request(scenario: Write) -> None:
    kill = {"kind": "kill", "part": "host", "number": 3, "at_s": AT_S}
    loaded, result = play(scenario, kill, recovery=STAYS_AWAY)
    rows = ledger(loaded, result)
    died = rows[rows.reason.str.contains("the host of agent 2 died")]
    assert set(died.agent_id) == {2, 3}, "two agents share a host, which goes by the first"
    assert (died.status == Status.FAILED).all()
    unreleased = rows[rows.agent_id.isin([2, 3]) & (rows.intended_s > AT_S)]
    assert len(unreleased) and unreleased.reason.eq("never released: the host of agent 2 died").all()
    assert (rows[rows.agent_id < 2].status == Status.MET).mean() > 0.9
    shares = [moment.grants_mbps[2:] for moment in result.turns[0].timeline.moments if moment.at_s > AT_S + 0.1]
    assert set(shares) == {(0.0, 0.0)}, "dead agents leave the uplink to the others"


def test_a_killed_host_goes_on_with_its_schedule(scenario: Write) -> None:
    loaded, result = play(scenario, {"kind": "kill", "part": "host", "number": 3, "at_s": AT_S})
    rows = ledger(loaded, result)
    own = rows[rows.agent_id >= 2]
    missed = own[own.intended_s.between(AT_S, BACK_S)]
    assert len(missed) and missed.reason.eq("never released: the host of agent 2 died").all()
    later = own[own.intended_s > BACK_S]
    assert len(later) and (later.status == Status.MET).mean() > 0.9


@pytest.mark.parametrize("part", ["allocator", "helper"])
def test_a_turn_that_can_t_go_on_ends_and_the_next_one_is_played(scenario: Write, part: str) -> None:
    loaded, result = play(scenario, {"kind": "kill", "part": part, "at_s": AT_S}, recovery=STAYS_AWAY)
    (reason,) = {turn.cut_short for turn in result.turns}
    assert reason.endswith("died") and part in reason
    assert result.problems == [f"{name}: {reason}" for name in ("deadline", "model_aware")]
    rows = assemble(result.turns, loaded, "lost")
    assert len(rows) == 2 * len(loaded.schedule())
    assert set(rows[rows.status == Status.FAILED].reason) <= {reason, f"never released: {reason}"}
    assert (rows[rows.intended_s > AT_S].reason == f"never released: {reason}").all()
    assert recorded(result)[:2] == [(AT_S, "fault", f"kill {reason.removesuffix(' died')}"), (AT_S, "fault", reason)]


@pytest.mark.parametrize("part", ["allocator", "helper"])
@pytest.mark.parametrize("kind", ["kill", "freeze"])
def test_allocator_and_helper_are_replaced_and_requests_in_flight_are_answered(
    scenario: Write, part: str, kind: str
) -> None:
    """A freeze that lasts is ended after `silent_s`."""
    settings = {"for_s": 60} if kind == "freeze" else {}
    recovery = {"silent_s": 1, "restart_s": 0.5}
    loaded, result = play(
        scenario, {"kind": kind, "part": part, "at_s": AT_S, **settings}, recovery=recovery, deadline_ms=3000
    )
    rows = ledger(loaded, result)
    assert (rows.status != Status.FAILED).all() and (rows.status == Status.MET).mean() > 0.95
    gone_s = AT_S + (1 if kind == "freeze" else 0)
    held = rows[(rows.intended_s < gone_s) & (rows.intended_s + rows.latency_ms / 1e3 > gone_s)]
    assert len(held), "some were under way"
    texts = [text for at_s, _, text in recorded(result) if at_s >= gone_s]
    assert texts[-1].endswith("is back after 0.5 s") and "died" in texts[-2]
    assert ("not answered for 1 s" in texts[-2]) == (kind == "freeze")


@pytest.mark.parametrize("kind", ["kill", "freeze"])
def test_without_a_relay_only_agents_of_other_nodes_wait(scenario: Write, kind: str) -> None:
    groups = [SMALL["groups"][0] | {"count": 2, "node": "edge"}, SMALL["groups"][0] | {"count": 2}]
    event = {"kind": kind, "part": "relay", "at_s": AT_S} | ({"for_s": 60} if kind == "freeze" else {})
    loaded, result = play(
        scenario,
        event,
        agents={"groups": groups},
        cluster={"nodes": {"edge": {"labels": {"site": "b"}}}},
        recovery={"silent_s": 1, "restart_s": 1},
        deadline_ms=5000,
    )
    rows = ledger(loaded, result)
    assert (rows.status != Status.FAILED).all()
    gone_s, back_s = AT_S + 0.1, AT_S + (2 if kind == "freeze" else 1)
    ended_s = rows.intended_s + rows.latency_ms / 1e3
    meanwhile = rows[(ended_s > gone_s) & (ended_s < back_s) & (rows["mode"].astype(str) != "local")]
    assert len(meanwhile) and (meanwhile.agent_id >= 2).all()
    assert [text for _, _, text in recorded(result)][-1].startswith("the station's relay is back after 1.0 s")


def test_there_is_a_relay_only_between_nodes(scenario: Write) -> None:
    with pytest.raises(DocumentError, match="there is no relay: neither agents nor workers are on another node"):
        play(scenario, {"kind": "kill", "part": "relay", "at_s": AT_S})


def test_a_worker_frozen_for_long_is_replaced_and_its_queue_handed_on(scenario: Write) -> None:
    freeze = {"kind": "freeze", "part": "worker", "number": 0, "at_s": AT_S, "for_s": 60}
    loaded, result = play(scenario, freeze, deadline_ms=6000, cloud={"workers": 2})
    rows = ledger(loaded, result)
    assert (rows.status != Status.FAILED).all()
    ended_s = rows.intended_s + rows.latency_ms / 1e3
    by_worker_1 = rows[(rows.intended_s < AT_S + 4) & (ended_s > AT_S + 4.1) & (ended_s < AT_S + 7)]
    assert len(by_worker_1) and set(by_worker_1.worker) == {1}
    texts = [text for _, _, text in recorded(result)]
    assert texts[1:] == [
        "worker 0 died: its process had not answered for 4 s and was ended", "worker 0 is back after 3.0 s",
    ]  # fmt: skip


def test_a_process_is_started_again_only_so_often(scenario: Write) -> None:
    kills = [{"kind": "kill", "part": "worker", "number": 1, "at_s": at_s} for at_s in (1, 3, 5)]
    loaded, result = play(scenario, *kills, recovery={"restarts": 2, "restart_s": 0.5})
    rows = ledger(loaded, result)
    assert set(rows[rows.intended_s > 5].worker) == {0}
    assert recorded(result)[-1] == (5, "fault", "worker 1 stays away: it was started again 2 times")


def test_a_frozen_allocator_answers_later_and_nothing_is_lost(scenario: Write) -> None:
    loaded, result = play(scenario, {"kind": "freeze", "part": "allocator", "at_s": AT_S, "for_s": 2})
    rows = ledger(loaded, result)
    asked = rows[rows.intended_s.between(AT_S, AT_S + 1) & rows.grant_mbps.notna()]
    assert len(asked) and (asked.latency_ms >= (AT_S + 2 - asked.intended_s) * 1e3).all()
    assert (rows.status != Status.FAILED).all()
    assert recorded(result)[1] == (AT_S + 2, "fault", "the allocator runs again")


def test_a_frozen_host_sends_later(scenario: Write) -> None:
    loaded, result = play(scenario, {"kind": "freeze", "part": "host", "number": 0, "at_s": AT_S, "for_s": 2})
    rows = ledger(loaded, result)
    frozen = rows[(rows.agent_id < 2) & rows.intended_s.between(AT_S, AT_S + 1) & (rows.worker >= 0)]
    assert len(frozen) and (frozen.latency_ms >= (AT_S + 2 - frozen.intended_s) * 1e3).all()
    assert (rows[rows.agent_id >= 2].status == Status.MET).mean() > 0.9


def test_a_frozen_helper_changes_no_rate(scenario: Write) -> None:
    freeze = {"kind": "freeze", "part": "helper", "at_s": AT_S, "for_s": 2}
    squeeze = {"kind": "uplink", "at_s": AT_S + 1, "steps": [{"mbps": 4, "for_s": 3}]}
    loaded, result = play(scenario, freeze, squeeze, allocators=["equal"])
    ledger(loaded, result)
    applied_s = {mbps: applied_s for _, applied_s, mbps in result.turns[0].channel}
    assert applied_s[4] == pytest.approx(AT_S + 2)


def test_without_a_worker_requests_stay_local_or_fail_and_the_run_goes_on(scenario: Write) -> None:
    kills = [{"kind": "kill", "part": "worker", "number": number, "at_s": AT_S} for number in (0, 1)]
    lasting = {"recovery": STAYS_AWAY}
    rows = ledger(*play(scenario, *kills, modes=["int8", "local"], **lasting))
    after = rows[rows.intended_s > AT_S]
    assert (after.answered == "local").any() and set(after.worker) == {-1}
    rows = ledger(*play(scenario, *kills, modes=["int8", "int4"], **lasting))
    after = rows[rows.intended_s > AT_S]
    assert (after.status == Status.FAILED).all() and after.reason.str.contains("worker").all()


def test_what_is_dead_can_t_be_killed_again_and_a_link_that_isn_t_cut_not_restored(scenario: Write) -> None:
    kill = {"kind": "kill", "part": "worker", "number": 1}
    loaded, result = play(scenario, kill | {"at_s": 1}, kill | {"at_s": 2}, {"kind": "restore", "agent": 0, "at_s": 3})
    ledger(loaded, result)
    refused = [text for _, _, text in recorded(result) if text.startswith("refused")]
    assert refused == ["refused: worker 1 is dead already", "refused: restore the link of agent 0: nothing to undo"]


def test_a_turn_begins_as_the_scenario_says_whatever_the_last_one_ended_with(scenario: Write) -> None:
    """A cut that nothing restores, and a freeze that outlasts the turn."""
    cut = {"kind": "cut", "agent": 0, "at_s": 9}
    freeze = {"kind": "freeze", "part": "worker", "number": 0, "at_s": 9, "for_s": 3600}
    alone = ledger(*play(scenario, cut, freeze, allocators=["model_aware"]))
    after = ledger(*play(scenario, cut, freeze))
    after = after[after.allocator == "model_aware"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, after)


def test_the_shipped_example_shows_its_faults() -> None:
    loaded = Scenario.load(CONFIGS / "faults.yaml")
    result = SimulatedEngine(loaded).run()
    rows = ledger(loaded, result)
    kinds = {event.kind for event in loaded.events}
    assert {"kill", "freeze", "cut", "uplink"} <= kinds
    assert not any(text.startswith("refused") for _, _, text in recorded(result))
    assert (rows.status != Status.FAILED).all(), "what the dead worker had is sent to another one"
    assert [text for _, kind, text in recorded(result) if kind == "recovery"] == ["worker 1 is back after 3.0 s"]
