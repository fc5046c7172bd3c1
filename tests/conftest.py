"""For all tests: no link starts while they are collected, and what this machine can do is asked once a session."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

from netem.helper.session import LinkSession
from netem.impairments import Impairment, Impairments, LinkImpairments
from tests.support.links import kernel_can

# How long an example takes says nothing but how busy the machine is. Every run tries the same examples, so that what is
# red was made red by a change; `pytest --hypothesis-profile search` looks for others, and for more.
settings.register_profile("any machine", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", settings.get_profile("any machine"), derandomize=False, max_examples=1000)
settings.load_profile("any machine")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """A link needs privileges and changes the kernel's state: listing the tests must not make one."""
    with mock.patch.object(LinkSession, "start", side_effect=AssertionError("a link starts during collection")):
        return (yield)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Live runs are measured."""
    if "ray_head" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.measuring)


def pytest_asyncio_loop_factories(item: pytest.Function) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A module's `EVENT_LOOP` is the loop of its tests, if it has one."""
    return {"loop": getattr(item.module, "EVENT_LOOP", asyncio.new_event_loop)}


@pytest.fixture(scope="session")
def shapes() -> bool:
    """Whether this machine's kernel shapes links for us."""
    return kernel_can()


@pytest.fixture
def kernel_link(shapes: bool) -> None:
    """Skip where the kernel can't shape links."""
    if not shapes:
        pytest.skip("no kernel shaping here; `scout doctor` says why")


@pytest.fixture(scope="session")
def impairs() -> bool:
    """Whether this machine's kernel delays and loses packets for us."""
    return kernel_can(impairments=Impairments(shared=LinkImpairments(up=Impairment(delay_ms=1))))
