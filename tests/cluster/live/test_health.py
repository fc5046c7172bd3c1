"""Heartbeats on virtual time: silence is noticed, slowness isn't taken for it, and a death is left to others."""

import asyncio

import pytest

from cluster.live.health import PERIOD_S, until_silent
from cluster.simulated.virtual_loop import VirtualLoop
from models.clock import now_s

EVENT_LOOP = VirtualLoop
SILENT_S = 4.0


class Pinged:
    """Answers after `delay_s`, until it falls silent at `silent_at_s`."""

    def __init__(self, silent_at_s: float, delay_s: float = 0.0) -> None:
        self._silent_at_s = silent_at_s
        self._delay_s = delay_s

    async def ping(self) -> None:
        if now_s() >= self._silent_at_s:
            await asyncio.Event().wait()
        await asyncio.sleep(self._delay_s)


async def test_silence_is_noticed_within_five_seconds() -> None:
    assert await until_silent(Pinged(silent_at_s=10.2).ping, SILENT_S)
    assert 10.2 + SILENT_S <= now_s() <= 10.2 + SILENT_S + PERIOD_S


async def test_what_is_slow_is_not_silent() -> None:
    watching = asyncio.ensure_future(until_silent(Pinged(silent_at_s=1e9, delay_s=SILENT_S - 0.1).ping, SILENT_S))
    done, _ = await asyncio.wait({watching}, timeout=100)
    assert not done
    watching.cancel()


async def test_a_ping_that_fails_is_no_silence() -> None:
    async def ping() -> None:
        raise ConnectionError

    assert not await until_silent(ping, SILENT_S)


async def test_time_in_which_the_watcher_itself_stood_still_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look takes ten seconds: eight of them are four seconds of silence, no fewer."""
    looks = 0

    async def wait(futures: set[asyncio.Future[object]], timeout: float) -> tuple[set[object], set[object]]:  # noqa: ASYNC109
        nonlocal looks
        looks += 1
        await asyncio.sleep(10)
        return set(), futures

    monkeypatch.setattr("cluster.live.health.asyncio.wait", wait)
    assert await until_silent(Pinged(silent_at_s=0).ping, SILENT_S)
    assert looks == SILENT_S / PERIOD_S
