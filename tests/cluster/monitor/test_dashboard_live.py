"""A real run, a real page, a real browser: a click takes the uplink away, and all follows."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.support import chromium
from tests.support.commands import started
from tests.support.processes import patience_s

Write = Callable[..., Path]
pytestmark = pytest.mark.skipif(not chromium.BINARY, reason="needs Chromium: apt-get install chromium")
LONGEST_FRAME = """
new Promise(done => {
  let longest = 0, last = performance.now(), until = last + 3000;
  requestAnimationFrame(function step(now) {
    longest = Math.max(longest, now - last); last = now;
    now < until ? requestAnimationFrame(step) : done(longest);
  });
})
"""


async def test_a_click_takes_the_uplink_away(ray_head: str, scenario: Write, tmp_path: Path) -> None:
    path = scenario(
        deadline_ms=1000,
        allocators=["deadline"],
        arrivals={"kind": "poisson", "rate_per_s": 0.1, "duration_s": 18},
        uplink={"channel": {"kind": "constant", "mbps": 20}},
        lateness_limit_ms=1000,  # a browser shares the cores
        agents={"groups": [{"profile": "tiny-profiles.yaml/small", "count": 64}]},
        cloud={"workers": 4},
    )
    run_dir = tmp_path / "run"
    run = started("run", str(path), "--out", str(run_dir), "--address", ray_head)
    while not (run_dir / "run.json").exists():
        assert run.poll() is None, run.communicate()[1]
        await asyncio.sleep(0.1)
    served = started("dashboard", str(run_dir), "--no-open")
    try:
        assert served.stdout
        address = (await asyncio.to_thread(served.stdout.readline)).strip()
        async with asyncio.timeout(120), chromium.tab(tmp_path / "profile") as tab:
            await tab.size(1280, 900)
            await tab.go(address)
            await tab.until("document.querySelector('#state')?.textContent === 'running'", timeout_s=60)
            await tab.until("document.querySelectorAll('#agents tbody tr').length === 64", timeout_s=30)
            await tab.until("/%/.test(document.querySelector('#compliance').textContent)", timeout_s=30)
            longest_ms = min([await tab.value(LONGEST_FRAME) for _ in range(2)])  # one stop may be another process's
            assert longest_ms < 500, "64 agents stay fluid, beside a run on the same cores"

            journal = run_dir / "journal" / "deadline" / "timeline.jsonl"
            clicked_s = time.monotonic()
            await tab.value("document.querySelector('#steps').value = '0.5 for 6'")
            await tab.value("document.querySelector('#script button').click()")
            while json.loads(journal.read_text().splitlines()[-1])["channel_mbps"] != 0.5:
                assert time.monotonic() - clicked_s < patience_s(1), "the channel follows within a second"
                await asyncio.sleep(0.02)
            await tab.until("document.querySelector('#events .intervention') !== null", timeout_s=patience_s(2))
            assert time.monotonic() - clicked_s < patience_s(3)
            await tab.until("document.querySelector('#state').textContent === 'ended'", timeout_s=60)
            assert tab.errors == []
    finally:
        served.terminate()
        served.wait()
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 0, stderr
    ledger = pd.read_parquet(run_dir / "ledger.parquet")
    assert set(ledger.interventions) == {0, 1}
    summary = json.loads((run_dir / "summary.json").read_text())
    assert [event["text"] for event in summary["events"]] == ["uplink: 0.5 Mbit/s for 6 s"]
    at_s = summary["events"][0]["at_s"]
    before = ledger[ledger.intended_s < at_s - 2]
    during = ledger[ledger.intended_s.between(at_s, at_s + 5)]
    assert (during.status == "met").mean() < (before.status == "met").mean() - 0.2
