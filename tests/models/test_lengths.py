"""Profiles as functions of lengths, and runs whose requests have lengths."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agents.offer import Offer
from cluster.experiments.workload_preview import WorkloadError, describe, picture
from cluster.run_folder import folder as run_folder
from cluster.scenario.schema import DocumentError, Scenario
from cluster.simulated.engine import run_simulated
from kvcache.modes import parse_mode
from models.lengths import DeviceTimes, Lengths
from models.profiles import ModelProfile

FULL, HALF, PROMPT, LOCAL = map(parse_mode, ("full", "q2c@0.5", "prompt", "local"))
TIMES = {"prefill_ms": 5, "prefill_token_ms": 0.03, "prefill_pair_ns": 2, "step_ms": 6, "step_position_us": 0.2}
PROFILE = {
    "kv_bytes": 100_000,
    "tokens": 100,
    "edge_prefill_ms": 18,
    "quality_basis": "none",
    "lengths": {"contexts": [10, 8000], "edge": TIMES | {"prefill_token_ms": 0.2, "step_ms": 20}, "cloud": TIMES},
    "modes": {
        "full": {"payload_bytes": 100_000, "decode_ms": 50, "quality": 100},
        "q2c@0.5": {"payload_bytes": 50_000, "encode_ms": 3, "decode_ms": 50, "quality": 90},
        "prompt": {"payload_bytes": 400, "cloud_prefill_ms": 8, "decode_ms": 50, "quality": 100},
        "local": {"payload_bytes": 0, "decode_ms": 70, "quality": 75},
    },
}
SCENARIO = {
    "name": "lengths",
    "deadline_ms": 20_000,
    "uplink": {"channel": {"kind": "constant", "mbps": 50}, "estimator": {"kind": "oracle"}},
    "arrivals": {"kind": "generated", "like": "chat", "rate_per_s": 1, "duration_s": 60},
    "agents": {"groups": [{"profile": "p.yaml/m", "count": 4}]},
    "cloud": {"workers": 2},
}


def profile(**changes: object) -> ModelProfile:
    return ModelProfile.model_validate({"name": "m"} | PROFILE | changes)


@given(st.integers(1, 5000), st.integers(1, 300), st.sampled_from([0.25, 0.5, 1.0]))
def test_an_answer_takes_the_sum_of_its_steps(context: int, output: int, retention: float) -> None:
    times = DeviceTimes.model_validate(TIMES)
    steps = [times.step_ms + times.step_position_us / 1e3 * (context * retention + number) for number in range(output)]
    assert times.decode_of(context * retention, output) == pytest.approx(sum(steps))


def test_bytes_and_times_grow_with_the_lengths() -> None:
    m, lengths = profile(), Lengths(1000, 20)
    assert m.payload_of(FULL, lengths) == 10 * m.payload_of(FULL)
    assert m.payload_of(LOCAL, lengths) == 0
    assert m.encode_of(HALF, lengths) == pytest.approx(30)
    assert m.edge_prefill_of(FULL, lengths) == pytest.approx(5 + 200 + 2)
    assert m.cloud_prefill_of(PROMPT, lengths) == pytest.approx(5 + 30 + 2)
    assert m.cloud_prefill_of(FULL, lengths) == 0, "a cache needs no prefill at any length"
    assert m.decode_of(HALF, lengths) < m.decode_of(FULL, lengths), "it attends to half of the positions"
    assert m.decode_of(LOCAL, lengths) == pytest.approx(20 * 20 + 0.2e-3 * (20 * 1000 + 190))


def test_without_lengths_a_profile_is_as_it_is_written() -> None:
    m = profile()
    assert Offer(m, tuple(m.modes)).options(None) == Offer(profile(lengths=None), tuple(m.modes)).options()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens": None}, "`lengths` needs `tokens`"),
        ({"lengths": None, "modes": {"full": PROFILE["modes"]["full"] | {"cloud": TIMES}}}, "no `lengths`"),
        ({"lengths": PROFILE["lengths"] | {"contexts": [5, 3]}}, "the shortest comes first"),
    ],
)
def test_wrong_profiles_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        profile(**wrong)


def scenario(folder: Path, model: dict | None = None, **changes: object) -> Scenario:
    (folder / "p.yaml").write_text(yaml.safe_dump({"m": model or PROFILE}))
    (folder / "s.yaml").write_text(yaml.safe_dump(SCENARIO | changes))
    return Scenario.load(folder / "s.yaml")


def test_a_request_takes_what_was_predicted_of_its_lengths(tmp_path: Path) -> None:
    run_dir = run_folder.create(tmp_path / "run", loaded := scenario(tmp_path, allocators=["deadline", "equal"]))
    summary = run_simulated(loaded, run_dir)
    assert not summary.warnings
    ledger = pd.read_parquet(run_dir / "ledger.parquet")
    assert set(ledger.status) == {"met"}
    m = profile()
    for row in ledger.itertuples():
        lengths, mode = Lengths(row.context_tokens, row.output_tokens), parse_mode(row.mode)
        assert row.prefill_ms == pytest.approx(m.edge_prefill_of(mode, lengths))
        assert row.decode_ms == pytest.approx(m.decode_of(mode, lengths))
        assert row.payload_bytes == m.payload_of(mode, lengths)
    assert ledger.context_tokens.nunique() > 30
    alone = ledger[(ledger.cloud_queue_ms < 1) & (ledger.uplink_wait_ms < 1)]
    assert (alone.predicted_ms / alone.latency_ms).median() == pytest.approx(1, abs=0.01)


def test_contexts_that_were_not_measured_are_said(tmp_path: Path) -> None:
    loaded = scenario(tmp_path, PROFILE | {"lengths": {**PROFILE["lengths"], "contexts": [900, 1000]}})
    summary = run_simulated(loaded, run_folder.create(tmp_path / "run", loaded))
    [warning] = summary.warnings
    assert "are outside of the 900 to 1,000 tokens that p.yaml/m was measured at" in warning


def test_the_profile_s_own_lengths_on_request(tmp_path: Path) -> None:
    arrivals = SCENARIO["arrivals"] | {"lengths": "profile"}
    fixed = scenario(tmp_path, model=PROFILE | {"lengths": None}, arrivals=arrivals)
    assert [arrival.lengths for arrival in fixed.schedule()] == [None] * len(fixed.schedule())
    assert fixed.longest is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": PROFILE | {"lengths": None}}, "has no `lengths`, so all its requests are alike"),
        (
            {"agents": {"groups": [{"profile": "p.yaml/m", "model": {"edge": "family/tiny", "cloud": "family/base"}}]}},
            "its real models answer their own examples",
        ),
        ({"arrivals": {"kind": "workload", "path": "w.csv"}}, "w.csv:3: 2 cells where the header has 3"),
        ({"arrivals": {"kind": "workload", "path": "none.csv"}}, "none.csv: No such file"),
    ],
)
def test_what_can_t_be_is_refused_before_it_starts(changes: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text("t_s,context_tokens,output_tokens\n0,1,1\n1,1\n")
    with pytest.raises(DocumentError, match=message):
        scenario(tmp_path, **changes)


def test_a_workload_is_described(tmp_path: Path) -> None:
    (tmp_path / "w.jsonl").write_text(
        "".join(
            f'{{"timestamp": {1000 * n}, "input_length": {n + 1}, "output_length": 2, "hash_ids": [0, {n}]}}\n'
            for n in range(5)
        )
    )
    found = describe(tmp_path / "w.jsonl", {})
    assert (found.requests, found.span_s, found.rate_per_s, found.gaps_cv) == (5, 4, 1, 0)
    assert (found.context_tokens.p50, found.context_tokens.max, found.output_tokens.mean) == (3, 5, 2)
    # A request doesn't see its own blocks before: 0 is seen in all but the first, each other block once.
    assert found.blocks_seen_before == 0.4
    assert picture("chat", {"duration_s": 20}).png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("chat", {"duration_s": 1e6}, "about 5,500,000 requests"),
        ("chat", {"gaps": {"kind": "gamma"}}, "gaps.cv: is missing"),
        ("chat", {"rate_per_s": 1e-3, "duration_s": 1}, "at least two"),
        ("nowhere.csv", {}, "nowhere.csv: No such file"),
    ],
)
def test_what_can_t_be_described_is_named(source: str, settings: dict, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        describe(source, settings)
