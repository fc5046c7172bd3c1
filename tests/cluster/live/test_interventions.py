"""Doing things to a run while it is on: what was asked is done, told, and undone when the turn ends."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from cluster.live.interventions import Channel
from cluster.run_folder.controls import (
    MAX_LINE_BYTES,
    BadControl,
    Inbox,
    PauseAgent,
    SetAllocator,
    SetDeadline,
    SetUplink,
    UplinkStep,
    ask,
    parse,
)
from cluster.run_folder.timeline import Timeline
from models.clock import now_s, sleep_until
from netem.channels import RateChange
from reports import files
from tests.support.commands import started
from tests.support.processes import patience_s
from tests.support.virtual import virtually

Write = Callable[..., Path]


class Told:
    """What a link and an allocator were told, and when."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, float]] = []
        self.reports: list[float] = []
        self.peeks: list[float] = []

    async def apply(self, mbps: float) -> None:
        self.rates.append((round(now_s(), 6), mbps))

    async def report(self, mbps: float) -> None:
        self.reports.append(mbps)

    async def peek(self, mbps: float) -> None:
        self.peeks.append(mbps)


def test_a_squeezed_channel_goes_back_to_what_the_scenario_says_by_then() -> None:
    async def main() -> None:
        told, timeline, log = Told(), Timeline(), []
        channel = Channel(40, now_s(), told.apply, told.report, told.peek, timeline, log)
        await channel.change(RateChange(0, 40))
        await sleep_until(1)
        channel.squeeze([UplinkStep(mbps=5, for_s=2), UplinkStep(mbps=10, for_s=1)])
        await sleep_until(1.5)
        assert timeline.channel_mbps == 5
        await channel.change(RateChange(2, 60))  # the scenario's channel goes on underneath
        assert timeline.channel_mbps == 5
        await sleep_until(4.5)
        assert told.rates == [(1, 5), (3, 10), (4, 60)] and told.peeks == [5, 10, 60]
        assert [(at_s, mbps) for at_s, _, mbps in log] == [(0, 40), (1, 5), (3, 10), (4, 60)]

    virtually(main)


def test_the_base_station_measures_what_was_there_not_what_was_planned() -> None:
    async def main() -> None:
        told = Told()
        channel = Channel(40, now_s(), told.apply, told.report, told.peek, Timeline(), [])
        await sleep_until(1)
        await channel.report(40.0)
        await sleep_until(1.5)
        channel.squeeze([UplinkStep(mbps=10, for_s=1)])
        await sleep_until(2)
        await channel.report(40.0)
        await sleep_until(3)
        await channel.report(40.0)
        await sleep_until(4)
        await channel.report(40.0)
        assert told.reports == pytest.approx([40, 25, 25, 40])

    virtually(main)


def test_a_later_squeeze_takes_the_place_of_the_one_before() -> None:
    async def main() -> None:
        told = Told()
        channel = Channel(40, now_s(), told.apply, told.report, told.peek, Timeline(), [])
        channel.squeeze([UplinkStep(mbps=5, for_s=60)])
        await sleep_until(1)
        channel.squeeze([UplinkStep(mbps=20, for_s=1)])
        await sleep_until(100)
        assert [mbps for _, mbps in told.rates][-2:] == [20, 40]

    virtually(main)


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense",
        b"[]",
        b'{"kind": "shell", "command": "id"}',
        b'{"kind": "uplink", "steps": []}',
        b'{"kind": "uplink", "steps": [{"mbps": 0, "for_s": 1}]}',
        b'{"kind": "uplink", "steps": [{"mbps": 1e999, "for_s": 1}]}',
        b'{"kind": "deadline", "ms": -1}',
        b'{"kind": "deadline", "ms": NaN}',
        b'{"kind": "pause", "agent": -1, "paused": true}',
        b'{"kind": "pause", "agent": 1, "paused": true, "more": 1}',
        b'{"kind": "deadline", "ms": 1' + b" " * MAX_LINE_BYTES + b"}",
    ],
)
def test_what_isn_t_a_control_is_refused_in_a_line(text: bytes) -> None:
    with pytest.raises(BadControl) as refused:
        parse(text)
    assert "\n" not in str(refused.value) and str(refused.value)


def test_the_inbox_takes_whole_lines_once(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    assert inbox.read() == []
    first, second = SetDeadline(ms=900), PauseAgent(agent=3, paused=True)
    ask(tmp_path, first)
    assert inbox.read() == [first] and inbox.read() == []
    with (tmp_path / files.CONTROLS).open("ab") as file:
        file.write(b"nonsense\n" + second.model_dump_json().encode()[:9])
    (refused,) = inbox.read()
    assert isinstance(refused, BadControl)
    with (tmp_path / files.CONTROLS).open("ab") as file:
        file.write(second.model_dump_json().encode()[9:] + b"\n")
    assert inbox.read() == [second]
    assert (tmp_path / files.CONTROLS).stat().st_mode & 0o777 == 0o600


def test_a_live_run_is_squeezed_and_its_ledger_says_so(ray_head: str, scenario: Write, tmp_path: Path) -> None:
    path = scenario(
        deadline_ms=1000,
        allocators=["deadline"],
        arrivals={"kind": "poisson", "rate_per_s": 2.0, "duration_s": 8},
        uplink={"channel": {"kind": "constant", "mbps": 20}},
    )
    run_dir = tmp_path / "run"
    process = started("run", path, "--out", run_dir, "--address", ray_head)
    journal = run_dir / "journal" / "deadline" / "timeline.jsonl"
    until_s = time.monotonic() + 60
    while not journal.exists() and time.monotonic() < until_s:
        time.sleep(0.1)
    time.sleep(2)
    asked_s = time.monotonic()
    ask(run_dir, SetUplink(steps=[UplinkStep(mbps=3, for_s=2)]))
    while '"channel_mbps": 3' not in journal.read_text() and time.monotonic() < asked_s + patience_s(5):
        time.sleep(0.02)
    assert time.monotonic() - asked_s < patience_s(1), "the channel follows within a second"
    for control in (
        SetDeadline(ms=1500),
        PauseAgent(agent=0, paused=True),
        PauseAgent(agent=99, paused=True),
        SetAllocator(policy="equal"),
        SetAllocator(policy="os:system"),
    ):
        ask(run_dir, control)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    summary = json.loads((run_dir / "summary.json").read_text())
    told = [event["text"] for event in summary["events"]]
    assert told[:3] == ["uplink: 3 Mbit/s for 2 s", "deadline: 1500 ms", "agent 0: paused"]
    assert told[3].startswith("refused: no agent 99") and told[4] == "allocator: equal"
    assert told[5].startswith("refused: allocator os:system")
    at_s = [event["at_s"] for event in summary["events"]]
    ledger = pd.read_parquet(run_dir / "ledger.parquet")
    assert (ledger.interventions == [sum(at <= s for at in at_s) for s in ledger.intended_s]).all()
    after = ledger[ledger.interventions == 6]
    assert len(after) and (after.deadline_ms == 1500).all()
    assert (ledger[ledger.interventions == 0].deadline_ms == 1000).all()
    paused = after[after.agent_id == 0]
    assert len(paused) and (paused.status == "rejected").all() and (paused.reason == "paused").all()
    timeline = pd.read_parquet(run_dir / "timeline.parquet")
    assert set(timeline.policy) == {"deadline", "equal"} and timeline.deadline_ms.iloc[-1] == 1500
    squeezed = timeline[timeline.channel_mbps == 3]
    assert 8 <= len(squeezed) <= 12, "two seconds of it, five moments each"
    assert squeezed.used_mbps.iloc[2:].mean() < 3.2, "single moments are a fifth of a second, and may be longer"
    assert timeline.channel_mbps.iloc[-1] == 20


def test_a_timeline_adds_up_to_what_was_sent(scenario: Write, tmp_path: Path) -> None:
    from cluster.run_folder import folder as run_folder
    from cluster.scenario.schema import Scenario
    from cluster.simulated.engine import run_simulated

    loaded = Scenario.load(scenario(arrivals={"kind": "poisson", "rate_per_s": 1.0, "duration_s": 20}))
    run_dir = run_folder.create(tmp_path / "run", loaded)
    run_simulated(loaded, run_dir)
    timeline = pd.read_parquet(run_dir / "timeline.parquet")
    ledger = pd.read_parquet(run_dir / "ledger.parquet")
    for name, moments in timeline.groupby("allocator"):
        sent = (moments.used_mbps * moments.at_s.diff().fillna(0)).sum() * 1e6 / 8
        assert sent == pytest.approx(ledger[ledger.allocator == name].wire_bytes.sum(), rel=0.03), name
        assert (moments.used_mbps <= moments.channel_mbps * 1.001 + 1e-3).all()
        grants = moments.grants_mbps.map(len)
        assert (grants == len(loaded.agent_profiles)).all()
