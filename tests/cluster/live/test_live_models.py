"""Live runs with real models: real caches over a shaped link, and answers whose quality is measured."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from cluster.live.preflight import ModelsUnavailable, check_models
from cluster.scenario.schema import Scenario
from models.datasets import load_examples
from models.f1 import token_f1
from tests.support.commands import Finished, scout
from tests.support.links import needs_kernel_link

MODEL = {"edge": "family/tiny", "cloud": "family/base", "dtype": "float32", "max_new_tokens": 8, "count": 7}


def family(path: Path, **changes: object) -> Path:
    data = {
        "name": "family",
        "deadline_ms": 5000,
        "lateness_limit_ms": 1000,  # real models share the cores
        "allocators": ["static_full", "static_int8", "static_scout", "static_local"],
        "modes": ["full", "int8", "prompt", "scout", "local"],
        "uplink": {"channel": {"kind": "constant", "mbps": 20}},
        "arrivals": {"kind": "synchronized", "rounds": 4, "period_s": 1.0},
        "agents": {"per_actor": 2, "groups": [{"profile": "family/tiny", "count": 2, "model": MODEL}]},
        "cloud": {"workers": 1, "batch": 2},
    }
    file = path / "family.yaml"
    file.write_text(yaml.safe_dump(data | changes))
    return file


@needs_kernel_link
@pytest.mark.timeout(300)
def test_real_models_answer_live(live_run: Callable[..., Finished], tmp_path: Path) -> None:
    done = live_run(family(tmp_path))
    assert done.returncode == 0, done.stderr
    ledger, summary = done.ledger, done.summary
    assert (ledger.status == "met").all() and len(ledger) == 4 * 8
    examples = load_examples("family", MODEL["count"])  # type: ignore[arg-type]
    expected = [100 * token_f1(row.answer, examples[row.request_id % 7].answers) for row in ledger.itertuples()]
    np.testing.assert_allclose(ledger.quality_delivered, expected)
    assert (ledger.answer != "").all()

    by_allocator = {name: rows.set_index("request_id") for name, rows in ledger.groupby("allocator")}
    full, int8, local, scouted = (by_allocator[f"static_{mode}"] for mode in ("full", "int8", "local", "scout"))
    assert (full.answer == local.answer).all(), "the cloud goes on from the edge's cache as the edge would"
    assert full.payload_bytes.nunique() > 3, "every context has a length of its own"
    ratio = int8.payload_bytes / full.payload_bytes
    assert ratio.between(0.53, 0.55).all(), "8 of 16 bits, a 16-bit scale for each 32, headers"
    assert (scouted.payload_bytes < 300).all() and (scouted.cloud_prefill_ms > 5 * full.cloud_prefill_ms).all()

    sent = sum(agent["hop1_bytes"] for agent in summary["link"]["agents"])
    assert 1.0 <= sent / ledger.wire_bytes.sum() < 1.02, "the kernel counted what the ledger says"
    assert all(actor["resident"] > 100 for actors in summary["memory_mb"].values() for actor in actors)
    assert summary["allocators"]["static_scout"]["stages_ms"]["cloud_prefill"] > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"edge": "family/huge"}, "the small family has no size 'huge'; there are tiny, small, base"),
        ({"edge": "qwen2.5-7b"}, "built-in shape: it has no weights but `weights: random`"),
        ({"edge": "qwen2.5-3b", "weights": "random"}, "the tokenizers of qwen2.5-3b and"),
        ({"examples": "squad"}, "no data set 'squad'"),
    ],
)
def test_models_that_cannot_run_are_named(tmp_path: Path, model: dict[str, str], message: str) -> None:
    groups = [{"profile": "family/tiny", "model": MODEL | model}]
    with pytest.raises(ModelsUnavailable, match=re.escape(message)):
        check_models(Scenario.load(family(tmp_path, agents={"groups": groups})))


def test_models_that_cannot_run_end_the_command_before_anything_starts(tmp_path: Path) -> None:
    groups = [{"profile": "family/tiny", "model": MODEL | {"edge": "family/huge"}}]
    done = scout("run", family(tmp_path, agents={"groups": groups}), "--out", tmp_path / "run")
    assert done.returncode == 2 and "the small family has no size 'huge'" in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_one_profile_has_one_model(tmp_path: Path) -> None:
    groups = [
        {"profile": "family/tiny", "model": MODEL},
        {"profile": "family/tiny", "model": MODEL | {"cloud": "family/small"}},
    ]
    done = scout("run", str(family(tmp_path, agents={"groups": groups})), "--engine", "simulated")
    assert done.returncode == 2 and "agents.groups[1].model" in done.stderr and "another model" in done.stderr


def test_simulated_runs_take_the_profile(tmp_path: Path) -> None:
    done = scout("run", str(family(tmp_path)), "--engine", "simulated", "--out", str(tmp_path / "run"))
    assert done.returncode == 0 and "no model ran" in " ".join(done.stdout.split())


def test_the_familys_scenario_loads() -> None:
    loaded = Scenario.load(Path(__file__).parents[3] / "configs" / "small-family.yaml")
    assert {real.cloud for real in loaded.real_models.values()} == {"family/base"}


@needs_kernel_link
@pytest.mark.timeout(300)
def test_a_context_that_is_not_in_the_cloud_is_sent_and_counted(
    live_run: Callable[..., Finished], tmp_path: Path
) -> None:
    allocators = ["static_scout", "static_prompt"]
    done = live_run(family(tmp_path, name="sent", context="sent", allocators=allocators))
    assert done.returncode == 0, done.stderr
    ledger = done.ledger
    assert (ledger.status == "met").all() and (ledger.answer != "").all()
    scouted, prompted = (ledger[ledger.allocator == name].set_index("request_id") for name in allocators)
    positions = scouted.payload_bytes - prompted.payload_bytes
    assert positions.between(8, 128).all(), "the prompt, and of some 300 positions at most a bit each with a header"
    agents = done.summary["link"]["agents"]
    others = sum(agent["hop1_bytes"] for agent in agents) - ledger.wire_bytes.sum()
    bare = 66 * sum(agent["hop1_packets"] for agent in agents)
    assert 0 <= others < bare, "all else that the kernel counted are handshakes and acknowledgements"
