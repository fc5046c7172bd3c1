"""The dashboard: who may use it, what it shows, what it passes on to the run."""

import asyncio
import html.parser
import http.client
import json
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from agents.record import Status
from cluster.monitor.dashboard import MAX_CLIENTS, Dashboard
from cluster.run_folder import controls
from tests.support import chromium
from tests.support.commands import REPOSITORY, scout, started
from tests.support.fake_run import FakeRun

UPLINK = {"kind": "uplink", "steps": [{"mbps": 5, "for_s": 10}]}
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def fake(tmp_path: Path) -> FakeRun:
    run = FakeRun(tmp_path / "run")
    run.begin()
    run.end("equal", 0, 0, Status.MET)
    run.tick("equal", 0.2)
    return run


@asynccontextmanager
async def serving(run_dir: Path) -> AsyncIterator[TestClient]:
    async with TestClient(TestServer(Dashboard(run_dir, "secret").app())) as client:
        yield client


async def events(reply: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in reply.content:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


def asked(fake: FakeRun) -> list[Any]:
    return controls.Inbox(fake.dir).read()


async def test_nothing_without_the_token(fake: FakeRun) -> None:
    async with serving(fake.dir) as client:
        for path in (
            "/",
            "/live",
            "/control",
            "/secre/",
            "/secret2/live",
            "//",
            "/%F0%9F%98%80/",
            "/secret/x",
            "/secret",
        ):
            assert (await client.get(path)).status == 404, path
            assert (await client.post(path, json=UPLINK)).status == 404, path
        reply = await client.post("/wrong/control", json=UPLINK)
        assert (reply.status, asked(fake)) == (404, [])
        assert reply.headers["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "attacker.example"},
        {"Host": "attacker.example:8000"},
        {"Host": "127.0.0.1.attacker.example"},
        {"Host": ""},
        {"Origin": "https://attacker.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_other_sites_are_refused_even_with_the_token(fake: FakeRun, headers: dict[str, str]) -> None:
    async with serving(fake.dir) as client:
        for path in ("/secret/", "/secret/live"):
            assert (await client.get(path, headers=headers)).status == 403
        assert (await client.post("/secret/control", json=UPLINK, headers=headers)).status == 403
    assert asked(fake) == []


async def test_the_page_and_its_headers(fake: FakeRun) -> None:
    async with serving(fake.dir) as client:
        reply = await client.get("/secret/", headers={"Sec-Fetch-Site": "none"})
        page = await reply.text()
        again = await client.get("/secret/")
    assert reply.status == 200 and reply.content_type == "text/html"
    policy = reply.headers["Content-Security-Policy"]
    nonce = re.findall(r"script-src 'nonce-([\w-]+)'", policy)[0]
    assert page.count(f'nonce="{nonce}"') == 2 and "{{nonce}}" not in page
    assert policy != again.headers["Content-Security-Policy"] and "unsafe" not in policy
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Cache-Control"] == "no-store"


def test_the_page_needs_nothing_from_elsewhere_and_writes_no_html() -> None:
    page = (REPOSITORY / "cluster" / "monitor" / "dashboard.html").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", page)

    class Attributes(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            for name, value in attrs:
                assert not name.startswith("on") and name not in ("src", "style"), (tag, name)
                assert name != "href" or value == "data:,"

    Attributes().feed(page)


async def test_controls_reach_the_run(fake: FakeRun) -> None:
    bodies = [
        UPLINK,
        {"kind": "deadline", "ms": 900},
        {"kind": "allocator", "policy": "greedy"},
        {"kind": "pause", "agent": 3, "paused": True},
    ]
    async with serving(fake.dir) as client:
        origin = f"http://127.0.0.1:{client.port}"
        for body in bodies:
            headers = {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
            reply = await client.post("/secret/control", json=body, headers=headers)
            assert reply.status == 202, await reply.text()
        assert (await reply.json()) == {"asked": "agent 3: paused"}
    assert [control.kind for control in asked(fake)] == ["uplink", "deadline", "allocator", "pause"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "invalid JSON"),
        ("[]", "should be an object"),
        ('{"kind": "reboot"}', "kind: 'reboot' is not one of 'uplink', 'deadline'"),
        ('{"kind": "uplink", "steps": []}', "steps: []: list should have at least 1 item"),
        ('{"kind": "uplink", "steps": [{"mbps": -1, "for_s": 1}]}', "greater than or equal to 0.01"),
        ('{"kind": "uplink", "steps": [{"mbps": 1e999, "for_s": 1}]}', "finite number"),
        ('{"kind": "deadline", "ms": 900, "x": 1}', "x: unknown key; allowed here: at_s, between, count, kind, ms"),
        ('{"kind": "allocator", "policy": "os:system"}', "no allocator 'os:system' here; there are equal, deadline"),
        ('{"kind": "kill", "part": "worker", "number": 64}', "no worker 64; there are"),
        ('{"kind": "deadline", "ms": 900, "at_s": 3}', "only a scenario's events have times"),
        ('{"kind": "pause", "agent": 4, "paused": true}', "no agent 4; there are 4, from 0 on"),
    ],
)
async def test_bad_controls_are_refused_with_a_reason(fake: FakeRun, body: str, message: str) -> None:
    async with serving(fake.dir) as client:
        reply = await client.post("/secret/control", data=body, headers={"Content-Type": "application/json"})
        text = await reply.text()
    assert reply.status == 400 and message in text and "\n" not in text
    assert asked(fake) == []


async def test_wrong_kinds_of_requests(fake: FakeRun) -> None:
    async with serving(fake.dir) as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            reply = await client.post("/secret/control", data=json.dumps(UPLINK), headers={"Content-Type": kind})
            assert reply.status == 415
        reply = await client.post("/secret/control", data="9" * 20_000, headers={"Content-Type": "application/json"})
        assert reply.status == 413
        assert (await client.get("/secret/control")).status == 405
        assert (await client.post("/secret/live")).status == 405
    assert asked(fake) == []


async def test_a_run_that_has_ended_takes_no_controls(fake: FakeRun, tmp_path: Path) -> None:
    fake.finish()
    simulated = FakeRun(tmp_path / "simulated")
    simulated.begin(engine="simulated")
    cut_off = FakeRun(tmp_path / "cut-off")
    cut_off.begin(pid_started=1)
    unready = FakeRun(tmp_path / "unready")
    for run, message in (
        (unready, "isn't ready"),
        (fake, "has ended"),
        (cut_off, "has ended"),
        (simulated, "simulated"),
    ):
        async with serving(run.dir) as client:
            reply = await client.post("/secret/control", json=UPLINK)
            assert reply.status == 409 and message in await reply.text()
        assert asked(run) == []


async def test_snapshots_come_as_the_run_goes_on(fake: FakeRun) -> None:
    async with serving(fake.dir) as client, asyncio.timeout(30):
        reply = await client.get("/secret/live")
        assert reply.content_type == "text/event-stream"
        stream = events(reply)
        first = await anext(stream)
        assert (first["state"], first["turns"][0]["ended"]) == ("running", 1)
        fake.end("equal", 1, 1, Status.LATE)
        assert (await anext(stream))["turns"][0]["compliance"] == 0.5
        fake.finish()
        assert (await anext(stream))["state"] == "ended"
        (late_comer,) = [await anext(events(await client.get("/secret/live")))]
        assert late_comer["state"] == "ended"


async def test_a_folder_that_goes_bad_is_told(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "run")
    (run.dir / "run.json").write_text("{}")
    async with serving(run.dir) as client, asyncio.timeout(30):
        stream = events(await client.get("/secret/live"))
        assert "is not a run folder" in (await anext(stream))["problem"]
        run.begin()
        assert (await anext(stream))["state"] == "starting"


async def test_open_pages_are_bounded(fake: FakeRun) -> None:
    async with serving(fake.dir) as client, asyncio.timeout(30):
        replies = [await client.get("/secret/live") for _ in range(MAX_CLIENTS)]
        assert (await client.get("/secret/live")).status == 503
        for reply in replies:
            reply.close()
        fake.end("equal", 1, 1, Status.LATE)  # what is sent next shows that they have gone
        while (reply := await client.get("/secret/live")).status == 503:
            await asyncio.sleep(0.1)
            fake.tick("equal", 0.4)
        assert reply.status == 200


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_this_machine_alone_and_ends_at_once(fake: FakeRun, signum: int) -> None:
    process = started("dashboard", fake.dir)
    try:
        assert process.stdout
        address = process.stdout.readline().strip()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/([\w-]{20,})/", address)
        assert found, address
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=10)
        connection.request("GET", f"/{found[2]}/live")
        reply = connection.getresponse()
        assert reply.status == 200
        listening = Path(f"/proc/{process.pid}/net/tcp").read_text()
        assert f"0100007F:{int(found[1]):04X} 00000000:0000 0A" in listening
        process.send_signal(signum)
        out, err = process.communicate(timeout=10)  # although a page is open
        assert (process.returncode, out) == (0, "") and "Traceback" not in err and found[2] not in err
        connection.close()
    finally:
        process.kill()


def test_mistakes_at_the_command_line(tmp_path: Path) -> None:
    done = scout("dashboard", str(tmp_path))
    assert done.returncode == 2 and "is not a run folder" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(chromium.BINARY is None, reason="no Chromium is installed")
async def test_a_browser_shows_the_run_and_a_click_reaches_it(tmp_path: Path) -> None:
    fake = FakeRun(tmp_path / EVIL.replace("/", "-"), agents=64, profile=EVIL)
    fake.begin()
    for number in range(256):
        fake.issue("equal", number)
        fake.end("equal", number, number % 64, Status.MET if number % 4 else Status.LATE, mode=EVIL)
    for number in range(100):
        fake.tick("equal", number / 5, policy=EVIL)
    fake.event("equal", 3.0, EVIL)
    server = TestServer(Dashboard(fake.dir, "secret").app())
    await server.start_server()
    try:
        async with asyncio.timeout(90), chromium.tab(tmp_path / "profile") as tab:
            await tab.size(1280, 900)
            await tab.go(f"http://127.0.0.1:{server.port}/secret/")
            await tab.until("document.querySelectorAll('#agents tbody tr').length === 64")
            assert await tab.value("document.querySelector('#compliance').textContent") == "75.0 %"
            assert await tab.value("document.querySelectorAll('img').length") == 0
            for where in ("#run", "#agents td.name", "#agents td.mode", "#events .intervention", "#turn"):
                assert "<img" in await tab.value(f"document.querySelector('{where}').textContent"), where

            await tab.value("kept = document.querySelectorAll('#agents tbody tr')[63]")
            fake.end("equal", 256, 63, Status.REJECTED)
            await tab.until("kept.isConnected && kept.cells[8].textContent === '4/5'")  # in place, not rebuilt

            await tab.value("document.querySelector('[data-share=\"0.25\"]').click()")
            await tab.until("document.querySelector('#answer').textContent === 'sent – uplink: 5 Mbit/s for 10 s'")
            await tab.value("document.querySelector('#steps').value = '5 for 10, 20 for 5.5'")
            await tab.value("document.querySelector('#script button').click()")
            await tab.until("document.querySelector('#answer').textContent.includes('then 20 Mbit/s for 5.5 s')")
            await tab.value("document.querySelector('#steps').value = '5 until 10'")
            await tab.value("document.querySelector('#script button').click()")
            await tab.until("document.querySelector('#answer').className === 'shown refused'")
            await tab.value("document.querySelector('#ms').value = '800'")
            await tab.value("document.querySelector('#deadline button').click()")
            await tab.until("document.querySelector('#answer').textContent === 'sent – deadline: 800 ms'")
            await tab.value("document.querySelector('#policy').value = 'greedy'")
            await tab.value("document.querySelector('#allocator button').click()")
            await tab.until("document.querySelector('#answer').textContent === 'sent – allocator: greedy'")
            await tab.value("kept.querySelector('button').click()")
            await tab.until("document.querySelector('#answer').textContent === 'sent – agent 63: paused'")
            assert [str(control) for control in asked(fake)] == [
                "uplink: 5 Mbit/s for 10 s",
                "uplink: 5 Mbit/s for 10 s, then 20 Mbit/s for 5.5 s",
                "deadline: 800 ms",
                "allocator: greedy",
                "agent 63: paused",
            ]

            for width, dark in ((390, False), (390, True), (768, False), (1920, True)):
                await tab.size(width, 844, mobile=width < 500, dark=dark)
                await tab.until("document.documentElement.scrollWidth <= innerWidth", timeout_s=5)
            fake.finish()
            await tab.until("document.querySelector('#state').textContent === 'ended'")
            assert await tab.value("document.querySelectorAll('fieldset:disabled').length") == 4
            assert await tab.value("kept.querySelector('button').disabled")
            assert tab.errors == []
            await server.close()
            await tab.until("document.querySelector('#state').textContent === 'no connection'")
    finally:
        await server.close()
