"""Live runs, end to end: Ray actors, real bytes over a shaped link, a ledger that balances."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from netem.wire import ideal_transfer_s
from tests.support.commands import ENVIRONMENT, REPOSITORY, Finished, scout, started
from tests.support.links import needs_kernel_link
from tests.support.processes import alive, descendants, namespaces_of, patience_s, wait_until

Run = Callable[..., Finished]
Write = Callable[..., Path]
ONCE = {"kind": "synchronized", "rounds": 1, "period_s": 1}


@needs_kernel_link
def test_the_headline_in_small(live_run: Run, scenario: Write) -> None:
    done = live_run(scenario(), "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)  # one document, and nothing else on standard output
    assert document == done.summary
    assert document["link"]["kind"] == "kernel" and document["valid"] and not document["partial"]
    assert [each["agent"] for each in document["verified"]["agents"]] == [0, 1]
    assert all(each["achieved_mbps"] for each in document["verified"]["agents"])
    equal, aware = document["allocators"]["equal"], document["allocators"]["model_aware"]
    assert (equal["rounds_all_met"], aware["rounds_all_met"]) == (0.0, 1.0)
    assert (equal["compliance"], aware["compliance"]) == (0.5, 1.0)
    assert equal["delivered_quality"] < equal["credited_quality"]

    ledger = done.ledger
    assert len(ledger) == document["issued"] == 12
    by_allocator = [rows.set_index("request_id") for _, rows in ledger.groupby("allocator")]
    pd.testing.assert_frame_equal(
        by_allocator[0][["agent_id", "intended_s", "round"]], by_allocator[1][["agent_id", "intended_s", "round"]]
    )
    # Real bytes over a really shaped link: every transfer takes what its grant makes it take.
    ideal_ms = [1e3 * ideal_transfer_s(row.payload_bytes, row.grant_mbps) for row in ledger.itertuples()]
    error = ledger.transfer_ms / ideal_ms - 1
    assert error.min() > -0.03 and error.abs().median() < 0.03
    assert error.max() < 0.15, "a receiver on a busy core is woken late, by some 10 ms of at least 100"
    # The kernel counted what the ledger says was sent, and little more (acknowledgements, handshakes).
    sent = sum(agent["hop1_bytes"] for agent in document["link"]["agents"])
    assert 1.0 <= sent / ledger.wire_bytes.sum() < 1.02
    assert document["link"]["direct_packets"] == 0
    assert sum(worker["served"] for worker in document["workers"]) == 12
    assert {path.name for path in done.run_dir.iterdir()} == {
        "scenario.yaml", "run.json", "summary.json", "ledger.parquet", "channel.csv", "timeline.parquet",
    }  # fmt: skip


@needs_kernel_link
def test_a_connection_of_its_own_for_every_request(live_run: Run, scenario: Write) -> None:
    transport = {"congestion": "cubic", "connections": "per_request"}
    uplink = {"channel": {"kind": "constant", "mbps": 20}, "transport": transport}
    done = live_run(scenario(uplink=uplink), "--allocators", "model_aware")
    assert done.returncode == 0, done.stderr
    assert (done.ledger.status == "met").all() and (done.ledger.handshake_ms > 0).all()
    assert (done.ledger.first_byte_ms < done.ledger.transfer_ms).all()
    assert all(worker.get("refused_connections", 0) == 0 for worker in done.summary["workers"])


def test_the_paced_link_has_no_congestion_control_to_choose(scenario: Write, tmp_path: Path) -> None:
    uplink = {"channel": {"kind": "constant", "mbps": 20}, "link": "paced", "transport": {"congestion": "cubic"}}
    done = scout("run", str(scenario(uplink=uplink)), "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and "only the kernel" in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize("link", ["auto", "kernel", "paced"])
def test_delay_and_loss_are_refused_where_there_are_none(
    scenario: Write, tmp_path: Path, link: str, impairs: bool
) -> None:
    if impairs:
        pytest.skip("this machine does what the test wants refused")
    uplink = {"channel": {"kind": "constant", "mbps": 20}, "link": link, "shared": {"down": {"delay_ms": 20}}}
    ray_folder = tmp_path / "ray"
    ray_folder.mkdir()
    environment = ENVIRONMENT | {"RAY_TMPDIR": str(ray_folder)}
    done = scout("run", scenario(uplink=uplink), "--out", tmp_path / "run", environment=environment)
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(said) == 1, done.stderr
    why = "the paced link has none" if link == "paced" else "the kernel can't shape links here"
    assert why in said[0] and "remove `link`" in said[0] and "--engine simulated" in said[0]
    assert not (tmp_path / "run").exists()
    assert not list(ray_folder.iterdir()), "before Ray or anything else is started"
    if link != "auto":
        return
    simulated = scout("run", scenario(uplink=uplink), "--out", tmp_path / "run", "--engine", "simulated")
    assert simulated.returncode == 0 and "are left out" in simulated.stdout, simulated.stderr


@needs_kernel_link
def test_a_small_request_is_one_frame_on_the_wire(live_run: Run, scenario: Write) -> None:
    done = live_run(scenario(modes=["prompt"], cloud={"workers": 1}), "--allocators", "equal")
    assert done.returncode == 0, done.stderr
    assert set(done.ledger.wire_bytes) == {336 + 52 + 4 + 66}, (
        "payload, header, chunk's length, Ethernet with IP and TCP"
    )
    for agent in done.summary["link"]["agents"]:
        # A handshake of two, then for each of three requests one frame and at most two acknowledgements.
        assert agent["hop1_packets"] <= 2 + 3 * (1 + 2)


def test_the_same_on_a_paced_link(live_run: Run, scenario: Write) -> None:
    uplink = {"channel": {"kind": "constant", "mbps": 10}, "estimator": {"kind": "oracle"}, "link": "paced"}
    done = live_run(scenario(uplink=uplink))
    assert done.returncode == 0, done.stderr
    assert done.summary["link"]["kind"] == "paced"
    assert "paced link" in done.stdout, "the report names the link"
    rounds = {name: s["rounds_all_met"] for name, s in done.summary["allocators"].items()}
    assert rounds == {"equal": 0.0, "model_aware": 1.0}


@needs_kernel_link
def test_a_falling_channel_makes_estimates_fall_and_is_played_in_time(live_run: Run, scenario: Write) -> None:
    uplink = {
        "channel": {"kind": "steps", "steps": [[0, 40], [1.0, 4]]},
        "estimator": {"kind": "ewma", "alpha": 1.0, "safety": 1.0},
    }
    arrivals = {"kind": "synchronized", "rounds": 2, "period_s": 2.2}
    modes = ["full", "int8", "int4", "local"]
    done = live_run(scenario(uplink=uplink, modes=modes, arrivals=arrivals), "--allocators", "model_aware")
    assert done.returncode == 0, done.stderr
    channel = pd.read_csv(done.run_dir / "channel.csv")
    assert channel.mbps.tolist() == [40, 4]
    assert ((channel.applied_s - channel.at_s).iloc[1:] < patience_s(0.05)).all()
    large = done.ledger[done.ledger.agent_id == 1]
    assert large.estimate_mbps.tolist() == [40, 4], "what was measured over the last second that has ended"
    assert large["mode"].tolist() == ["full", "local"]


def test_gpu_fractions_are_given_out_and_checked(live_run: Run, scenario: Write) -> None:
    groups = yaml.safe_load(scenario().read_text())["agents"]["groups"]
    fits = scenario(agents={"groups": groups, "num_gpus": 0.3}, arrivals=ONCE)
    done = live_run(fits, "--allocators", "model_aware")
    assert done.returncode == 0, done.stderr
    too_much = scenario(agents={"groups": groups, "num_gpus": 0.6})
    refused = scout("run", str(too_much), "--address", "auto", "--out", str(done.run_dir.parent / "other"))
    assert refused.returncode == 2
    assert "don't fit on the 1 of 1 GPU(s) that are free: 2 agent actors x agents.num_gpus 0.6" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 2


def test_too_many_cpus_are_refused(live_run: Run, scenario: Write) -> None:
    groups = yaml.safe_load(scenario().read_text())["agents"]["groups"]
    refused = live_run(scenario(agents={"groups": groups, "num_cpus": 3}))
    assert refused.returncode == 2
    assert "asks 6.3 CPUs and this node has 4 free: 2 agent actors x agents.num_cpus 3" in refused.stderr


def test_a_late_emulator_says_so(live_run: Run, scenario: Write) -> None:
    done = live_run(scenario(lateness_limit_ms=0.001, arrivals=ONCE), "--allocators", "model_aware")
    assert done.returncode == 1
    assert not done.summary["valid"] and "this run is INVALID" in done.stdout


def start(scenario_path: Path, run_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """A run in the background, once its first requests are under way."""
    process = started("run", scenario_path, "--out", run_dir, *arguments, stderr=subprocess.STDOUT)
    journals = run_dir / "journal" / "equal"
    deadline_s = time.monotonic() + 60
    while not any(path.stat().st_size for path in journals.glob("*.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline_s, process.communicate()[0]
        time.sleep(0.05)
    time.sleep(0.2)
    return process


LONG = {"kind": "synchronized", "rounds": 40, "period_s": 1.3}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_in_seconds_with_a_partial_report(
    ray_head: str, scenario: Write, tmp_path: Path, signum: int
) -> None:
    process = start(scenario(arrivals=LONG), tmp_path / "run", "--address", ray_head)
    refused = scout("recover", tmp_path / "run")
    assert refused.returncode == 2 and f"process {process.pid}, is still running" in refused.stderr
    os.kill(process.pid, signum)
    output, _ = process.communicate(timeout=patience_s(5))
    done = Finished(process.returncode, output, "", tmp_path / "run")
    assert done.returncode == 130
    assert "PARTIAL: interrupted" in output and "Traceback" not in output
    assert done.summary["partial"]
    s = done.summary["allocators"]["equal"]
    assert s["scheduled"] == s["met"] + s["late"] + s["rejected"] + s["failed"] == len(done.ledger) == 80
    assert s["reasons"]["never released: interrupted"] == s["scheduled"] - s["issued"] > 0
    in_flight = s["failed"] - (s["scheduled"] - s["issued"])
    assert s["reasons"].get("interrupted", 0) == in_flight, "none, if it came between two rounds"


@pytest.mark.parametrize("delay_s", [0.5, 2.0, 3.5, 5.0])
def test_interrupted_while_starting_it_ends_without_a_traceback(
    scenario: Write, tmp_path: Path, delay_s: float
) -> None:
    process = started(
        "run",
        scenario(arrivals=LONG),
        "--out",
        tmp_path / "run",
        stderr=subprocess.STDOUT,
        # As in a terminal: where the tests run in a shell's background, what is sent before ours takes over is lost.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=patience_s(15))  # Ray may finish starting first
    assert process.returncode in (130, -signal.SIGINT)  # the latter: Python itself was still starting
    assert "Traceback" not in output or process.returncode == -signal.SIGINT


@needs_kernel_link
@pytest.mark.parametrize("victim", ["driver", "netem.helper", "raylet/raylet", "gcs_server"])
def test_nothing_is_left_five_seconds_after_a_kill(scenario: Write, tmp_path: Path, victim: str) -> None:
    """Where what dies is not started again."""
    process = start(scenario(arrivals=LONG, allocators=["equal"], recovery={"restarts": 0}), tmp_path / "run")
    family = descendants(process.pid)
    namespaces = namespaces_of(*family)
    assert len(namespaces.names) >= 3, "two agents, the cloud, and maybe more"
    pid = process.pid if victim == "driver" else next(p for p, name in family.items() if victim in name)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(alive, family)))
    assert {name for pid, name in family.items() if alive(pid)} == set()
    assert namespaces.gone()
    output, _ = process.communicate()
    if victim == "driver":
        recovered = scout("recover", str(tmp_path / "run"), "--json")
        assert recovered.returncode == 0, recovered.stderr
        summary = json.loads(recovered.stdout)
    else:
        assert process.returncode == 1 and "PARTIAL: " in output
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["partial"]
    s = summary["allocators"]["equal"]
    assert s["scheduled"] == s["met"] + s["late"] + s["rejected"] + s["failed"] > s["issued"] >= 2
    ledger = pd.read_parquet(tmp_path / "run" / "ledger.parquet")
    assert len(ledger) == s["scheduled"] == 80, "what was never released has rows as well"


def test_as_a_ray_job(ray_head: str, scenario: Write, tmp_path: Path) -> None:
    """Both ways of the README, with token authentication on."""
    once = scenario(arrivals=ONCE, allocators=["model_aware"])
    ray = str(Path(sys.executable).parent / "ray")
    by_ray = [ray, "job", "submit", "--working-dir", ".", "--", "python", "-m", "cluster", "run"]
    by_scout = [sys.executable, "-m", "cluster", "submit"]
    for number, command in enumerate([by_ray, by_scout]):
        out = tmp_path / f"run-{number}"
        environment = ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)}
        for _ in range(4):
            done = subprocess.run(
                [*command, once.name, "--out", str(out)], cwd=tmp_path, env=environment, capture_output=True, text=True,
                timeout=120, check=False,
            )  # fmt: skip
            if "No available agent" not in done.stderr + done.stdout:
                break
            time.sleep(5)  # on a busy machine a young cluster's takes its time
        assert done.returncode == 0, done.stdout + done.stderr
        assert "model_aware  100.0%" in done.stdout
        assert json.loads((out / "summary.json").read_text())["allocators"]["model_aware"]["met"] == 2


def test_submit_refuses_what_would_not_travel(tmp_path: Path, scenario: Write) -> None:
    done = scout("submit", str(scenario()))
    assert done.returncode == 2 and "only the working directory is uploaded" in done.stderr
