"""Links of every kind that this machine can make; those it can't are skipped with the reason."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from netem.helper.client import LinkClient
from netem.helper.session import LinkSession
from tests.support.links import KINDS, start_link


@pytest.fixture(params=KINDS, ids=lambda pair: "-".join(pair))
def any_link(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(kind, privilege) of every link there is."""
    return request.param


@pytest.fixture
def make_session(any_link: tuple[str, str]) -> Iterator[Callable[..., LinkSession]]:
    """Starts sessions of the kind under test and stops them at the end."""
    sessions: list[LinkSession] = []

    def make(**settings: Any) -> LinkSession:
        sessions.append(start_link(*any_link, **settings))
        return sessions[-1]

    yield make
    for session in sessions:
        session.stop()


@pytest.fixture
def session(make_session: Callable[..., LinkSession]) -> LinkSession:
    """A link with 4 agents at 50 Mbit/s on a channel of 200, 2 workers."""
    return make_session()


@pytest.fixture
async def client(session: LinkSession) -> AsyncIterator[LinkClient]:
    async with await LinkClient.open(session.socket_path) as opened:
        yield opened
