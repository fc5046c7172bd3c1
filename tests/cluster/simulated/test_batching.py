"""Workers that batch by iteration, end to end on virtual time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from agents.record import STAGES
from cluster.run_folder.ledger import assemble
from cluster.scenario.schema import Scenario
from cluster.scenario.yaml_document import DocumentError
from cluster.simulated.engine import SimulatedEngine

Write = Callable[..., Path]
BUSY: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate_per_s": 4.0, "duration_s": 11},
    "agents": {"groups": [{"profile": "tiny-profiles.yaml/small", "count": 4}], "backlog_limit": 500},
    "uplink": {"channel": {"kind": "constant", "mbps": 1000}},
    "allocators": ["deadline", "equal"],
    "on_infeasible": "late",
}
CONTINUOUS = {"kind": "continuous", "slots": 16}


def rows_of(path: Path) -> pd.DataFrame:
    loaded = Scenario.load(path)
    rows = assemble(SimulatedEngine(loaded).run().turns, loaded, "lost")
    assert len(rows) == len(loaded.schedule()) * len(loaded.allocators)
    assert not rows.reason.eq("lost").any()
    return rows


def test_what_overloads_closed_batches_is_little_for_continuous_ones(scenario: Write) -> None:
    closed = rows_of(scenario(**BUSY, cloud={"workers": 1, "batch": 16, "queue_limit": 1000}))
    path = scenario(**BUSY, cloud={"workers": 1, "batching": CONTINUOUS, "queue_limit": 1000})
    continuous = rows_of(path)
    for policy in ("deadline", "equal"):
        before, now = (rows[rows.allocator == policy] for rows in (closed, continuous))
        assert now.status.eq("met").mean() >= before.status.eq("met").mean()
        assert now.cloud_queue_ms.mean() < before.cloud_queue_ms.mean() / 2
        stages = [name for name in now if name.endswith("_ms") and name.removesuffix("_ms") in STAGES]
        sums = now[stages].sum(axis=1)
        assert (sums - now.latency_ms).abs().max() < 1e-6
    pd.testing.assert_frame_equal(continuous, rows_of(path))


def test_workers_that_die_or_freeze_lose_no_request(scenario: Write) -> None:
    events = [
        {"kind": "kill", "part": "worker", "number": 0, "at_s": 4},
        {"kind": "freeze", "part": "worker", "number": 1, "at_s": 9, "for_s": 1.5},
    ]
    rows = rows_of(scenario(**BUSY, cloud={"workers": 2, "batching": CONTINUOUS}, events=events))
    assert rows.status.isin(["met", "late"]).mean() > 0.95
    frozen = rows[(rows.worker == 1) & rows.intended_s.between(9.0, 9.3)]
    assert len(frozen) and (frozen.latency_ms.dropna() > 1000).all()


def test_every_limit_that_is_set_is_kept_or_the_request_is_late(scenario: Write) -> None:
    limits = {"ttft_ms": 190, "tpot_ms": 1.7}
    groups = [
        {"profile": "tiny-profiles.yaml/small", "count": 4},
        {"profile": "tiny-profiles.yaml/large", "ttft_ms": 290},
    ]
    changes = BUSY | {"agents": {"groups": groups, "backlog_limit": 500}, "allocators": ["equal"]}
    changes["uplink"] = {"channel": {"kind": "constant", "mbps": 60}}
    rows = rows_of(scenario(**changes, cloud={"workers": 1, "batching": CONTINUOUS}, **limits))
    small = rows.profile.str.endswith("small")
    assert rows.ttft_slo_ms.tolist() == [190 if is_small else 290 for is_small in small]
    answered = rows[rows.latency_ms.notna()]
    first = answered.intended_s * 1e3 + answered.ttft_ms
    assert (answered.ttft_ms < answered.latency_ms).all() and first.notna().all()
    assert (answered.ttft_ms + 31 * answered.tpot_ms).to_numpy() == pytest.approx(answered.latency_ms.to_numpy())
    kept = (
        (answered.latency_ms <= answered.deadline_ms)
        & (answered.ttft_ms <= answered.ttft_slo_ms)
        & (answered.tpot_ms <= answered.tpot_slo_ms)
    )
    assert (kept == (answered.status == "met")).all()
    missed = ~kept & (answered.latency_ms <= answered.deadline_ms)
    assert (missed & (answered.ttft_ms > answered.ttft_slo_ms)).any() and (answered.tpot_ms > 1.7).any()


def test_the_allocator_plans_for_the_first_token(scenario: Write) -> None:
    """Where the whole answer has time for a large cache and its first token has not, something smaller goes up."""
    alone = {"groups": [{"profile": "tiny-profiles.yaml/small", "count": 1}]}
    arrivals = {"kind": "synchronized", "rounds": 3, "period_s": 3}
    uplink = {"channel": {"kind": "constant", "mbps": 10}}
    common: dict[str, Any] = {"agents": alone, "arrivals": arrivals, "uplink": uplink, "allocators": ["deadline"]}
    for cloud, at_250 in (({"batching": CONTINUOUS}, "int8"), ({}, "int4")):
        modes = {}
        for ttft_ms in (None, 250, 165):
            rows = rows_of(scenario(**common, deadline_ms=1000, cloud=cloud, ttft_ms=ttft_ms, hedge=False))
            modes[ttft_ms] = set(map(str, rows["mode"]))
            assert rows.status.eq("met").all()
            assert ttft_ms is None or rows.ttft_ms.max() <= ttft_ms
        assert modes == {None: {"full"}, 250: {at_250}, 165: {"int4"}}, "without batching, answers come whole"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"tpot_ms": 20}, "tpot_ms: answers come whole: cloud.batching or a cloud.backend sends tokens ahead"),
        ({"ttft_ms": 15}, r"ttft_ms: the planning margin \(margin_ms\) of 20 ms leaves nothing of 15 ms"),
        (
            {"agents": {"groups": [{"profile": "tiny-profiles.yaml/small", "deadline_ms": 30}]}},
            r"groups\[0\].deadline_ms: 30 ms is shorter than the compute",
        ),
        (
            {"timeout_ms": 800, "agents": {"groups": [{"profile": "tiny-profiles.yaml/small", "deadline_ms": 900}]}},
            "of 900 ms",
        ),
    ],
)
def test_limits_that_can_t_be_kept_are_refused(scenario: Write, limits: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        Scenario.load(scenario(**limits))


@pytest.mark.parametrize(
    ("cloud", "message"),
    [
        ({"batch": 4, "batching": CONTINUOUS}, "cloud.batch: is for closed batches; with `batching`, `slots` says"),
        ({"batching": CONTINUOUS | {"kv_tokens": 40}}, "40 positions are fewer than the longest request's 202"),
        ({"batching": CONTINUOUS | {"step_tokens": 8}}, "slots: 16 sequences need as many step_tokens, not 8"),
        ({"batching": CONTINUOUS | {"order": "lifo"}}, "cloud.batching.order"),
        ({"batching": {"kind": "static"}}, "cloud.batching.kind"),
    ],
)
def test_what_can_t_be_batched_is_refused(scenario: Write, cloud: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        Scenario.load(scenario(cloud=cloud))


def test_a_server_is_taken_to_batch_by_iteration(scenario: Write) -> None:
    backend = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m", "at_a_time": 3000}
    loaded = Scenario.load(scenario(modes=["prompt"], cloud={"backend": backend}, tpot_ms=500))
    rules = loaded.cloud.by_iteration
    assert loaded.streams and rules is not None and (rules.slots, rules.step_tokens) == (3000, 3000)
    [turn, *_] = SimulatedEngine(loaded).run().turns
    answered = [record for record in turn.records if record.answered is not None]
    assert answered and all(record.ttft_ms < record.latency_ms for record in answered)
