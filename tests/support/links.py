"""Links of every kind; a test that needs one that this machine can't make is skipped with the reason."""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from netem.checks.verify import LinkDeviates
from netem.helper.session import LinkSession, LinkUnavailable

KINDS = [("kernel", "root"), ("kernel", "userns"), ("paced", "auto")]


def start_link(kind: Any, privilege: Any, **settings: Any) -> LinkSession:
    """Start a link with small defaults, or skip the test."""
    defaults = {"agents": 4, "workers": 2, "channel_mbps": 200.0, "grant_mbps": 50.0}
    try:
        return LinkSession.start(kind, privilege=privilege, **(defaults | settings))
    except LinkUnavailable as error:
        pytest.skip(f"no {kind} link by {privilege} here: {error}")


def kernel_can(**settings: Any) -> bool:
    """Whether this machine makes a kernel link with these settings; tries it."""
    try:
        LinkSession.start("kernel", agents=1, workers=1, channel_mbps=1, grant_mbps=1, **settings).stop()
    except LinkUnavailable:
        return False
    return True


def measured(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Six tries for a test that takes times: a link that is wrong is wrong each time.

    A transfer of 44 ms is held to 3 %, 1.3 ms; its receiver is woken by up to a time slice (4 ms) late for
    each other process on its core: seen on most tries where eight wanted each core, on few where one does.
    """

    @functools.wraps(test)
    async def tried(**fixtures: Any) -> None:
        for pause_s in (0.1, 0.5, 1, 3, 10):
            with contextlib.suppress(AssertionError, LinkDeviates):
                return await test(**fixtures)
            await asyncio.sleep(pause_s)
        await test(**fixtures)

    return tried


# The fixture asks at setup, once a session: no link starts while tests are collected.
needs_kernel_link = pytest.mark.usefixtures("kernel_link")
