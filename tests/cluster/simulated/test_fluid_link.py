"""The fluid link carries exactly what grants and the channel let through, whatever changes in between."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.frames import CloudStages
from cluster.simulated.fluid_link import FluidLink
from models.clock import now_s, sleep_until
from netem.fairness import max_min_shares
from tests.support.virtual import virtually

MBIT = 125_000  # bytes
NO_FRAMES = 1e-9  # frames so small that nobody waits for one


async def ended_s(carrying: Awaitable[float]) -> float:
    await carrying
    return now_s()


async def at(at_s: float, *changes: Callable[[], Any]) -> None:
    await sleep_until(at_s)
    for change in changes:
        if isinstance(result := change(), Awaitable):
            await result


@given(st.integers(1, 10**8), st.floats(0.01, 1000), st.floats(0.01, 1000))
def test_a_transfer_alone_takes_its_bits_over_the_slower_hop(size: int, channel: float, grant: float) -> None:
    async def main() -> tuple[float, float]:
        link = FluidLink(channel, grant)
        return await link.carry(0, size), now_s()

    assert virtually(main) == (size, pytest.approx(size * 8e-6 / min(channel, grant)))


def test_grants_and_channel_that_change_in_mid_transfer() -> None:
    async def main() -> float:
        link = FluidLink(channel_mbps=8, grant_mbps=2, frame_bytes=NO_FRAMES)
        async with asyncio.TaskGroup() as group:
            carrying = group.create_task(ended_s(link.carry(0, 10 * MBIT)))
            group.create_task(at(1, lambda: link.set_grants({0: 5})))  # 2 Mbit are through
            group.create_task(at(2, lambda: link.set_channel(1)))  # 7 Mbit
            group.create_task(at(3, lambda: link.set_grants({0: 0.5})))  # 8 Mbit
            group.create_task(at(4, lambda: link.set_channel(100), lambda: link.set_grants({0: 6})))  # 8.5 Mbit
        return carrying.result()

    assert virtually(main) == pytest.approx(4.25)


def test_the_first_grant_holds_until_another_and_others_don_t_matter() -> None:
    async def main() -> float:
        link = FluidLink(channel_mbps=8, grant_mbps=2)
        await link.set_grants({1: 4})
        async with asyncio.TaskGroup() as group:
            first = group.create_task(ended_s(link.carry(0, 10 * MBIT)))
            group.create_task(at(1, lambda: link.set_grants({1: 8, 2: 8})))
        return first.result()

    assert virtually(main) == pytest.approx(5), "grants of those who send nothing take nothing"


def test_who_ends_leaves_the_channel_to_the_others() -> None:
    async def main() -> list[float]:
        link = FluidLink(channel_mbps=6, grant_mbps=6)
        async with asyncio.TaskGroup() as group:
            sizes = (2, 4, 6)
            carried = [group.create_task(ended_s(link.carry(a, mbit * MBIT))) for a, mbit in enumerate(sizes)]
        return [each.result() for each in carried]

    assert virtually(main) == pytest.approx([1, 1 + 4 / 6, 2])


def test_who_is_cancelled_leaves_the_channel_to_the_others() -> None:
    async def main() -> list[float]:
        link = FluidLink(channel_mbps=6, grant_mbps=6)
        staying = asyncio.create_task(ended_s(link.carry(0, 6 * MBIT)))
        leaving = asyncio.create_task(link.carry(1, 6 * MBIT))
        await at(1, leaving.cancel)
        await asyncio.wait([leaving])
        assert leaving.cancelled()
        alone = await staying
        return [alone, await ended_s(link.carry(1, 6 * MBIT))]

    assert virtually(main) == pytest.approx([1.5, 2.5]), "and may send again, from the beginning"


@pytest.mark.parametrize(("until_s", "mbit"), [(0.0, 0), (0.75, 1.5), (5.0, 8)])
def test_until_something_else_is_done(until_s: float, mbit: float) -> None:
    async def main() -> tuple[float, float]:
        link = FluidLink(channel_mbps=8, grant_mbps=2)
        loop = asyncio.get_running_loop()
        until: asyncio.Future[CloudStages] = loop.create_future()
        loop.call_at(until_s, until.set_result, CloudStages(0.0))
        await asyncio.sleep(0)
        return await link.carry(0, 8 * MBIT, until) / MBIT, now_s()

    assert virtually(main) == (pytest.approx(mbit), pytest.approx(min(until_s, 4.0)))


def test_a_rate_of_nothing_carries_nothing_until_there_is_one() -> None:
    async def main() -> float:
        link = FluidLink(channel_mbps=8, grant_mbps=2)
        await link.set_grants({0: 0.0})
        async with asyncio.TaskGroup() as group:
            carrying = group.create_task(ended_s(link.carry(0, MBIT)))
            group.create_task(at(3, lambda: link.set_grants({0: 1})))
            group.create_task(at(3.5, lambda: link.set_grants({0: 0})))
            group.create_task(at(7, lambda: link.set_grants({0: 1})))
        return carrying.result()

    assert virtually(main) == pytest.approx(7.5)


@pytest.mark.parametrize(
    ("changed", "ends_s"),
    [
        # Frames of 1 Mbit at 1 Mbit/s leave at 0, 1, ... s.
        ({1.25: 4.0}, 2 + 6 / 4),
        ({1.0: 4.0}, 1 + 7 / 4),  # between two frames
        ({1.25: 0.5}, 1.25 + 6.75 / 0.5),  # a lower one acts at once
        ({1.25: 4.0, 1.5: 2.0}, 2 + 6 / 2),  # the last one counts
        ({1.25: 4.0, 1.5: 0.5}, 1.5 + 6.5 / 0.5),
        ({1.25: 4.0, 1.5: 1.0}, 8.0),
    ],
)
def test_a_higher_grant_acts_from_the_next_frame_on(changed: dict[float, float], ends_s: float) -> None:
    async def main() -> float:
        link = FluidLink(channel_mbps=100, grant_mbps=1, frame_bytes=MBIT)
        async with asyncio.TaskGroup() as group:
            carrying = group.create_task(ended_s(link.carry(0, 8 * MBIT)))
            for at_s, mbps in changed.items():
                group.create_task(at(at_s, lambda mbps=mbps: link.set_grants({0: mbps})))
        return carrying.result()

    assert virtually(main) == pytest.approx(ends_s)


def test_a_grant_raised_in_the_last_frame_holds_for_the_next_transfer() -> None:
    async def main() -> list[float]:
        link = FluidLink(channel_mbps=100, grant_mbps=1, frame_bytes=MBIT)
        async with asyncio.TaskGroup() as group:
            first = group.create_task(ended_s(link.carry(0, 1.5 * MBIT)))
            group.create_task(at(1.25, lambda: link.set_grants({0: 4.0})))
        return [first.result(), await ended_s(link.carry(0, 4 * MBIT))]

    assert virtually(main) == pytest.approx([1.5, 2.5])


rates = st.floats(0.05, 100) | st.sampled_from([1.0, 2.0, 10.0])
transfers = st.lists(st.tuples(st.integers(0, 40), st.floats(0.01, 60)), min_size=1, max_size=5)  # (tenth of s, Mbit)
changes = st.lists(st.tuples(st.integers(0, 60), st.integers(-1, 4), rates), max_size=12)  # (tenth, agent or -1, rate)


@settings(deadline=None)
@given(rates, rates, transfers, changes)
def test_any_transfers_under_any_changes(
    channel: float, grant: float, sent: list[tuple[int, float]], changed: list[tuple[int, int, float]]
) -> None:
    """Against an integration over the intervals in which nothing changes, by `max_min_shares` alone."""
    changed = sorted(changed, key=lambda change: change[0])

    async def main() -> list[float]:
        link = FluidLink(channel, grant, NO_FRAMES)

        async def play() -> None:
            for tenths, agent, mbps in changed:
                await sleep_until(tenths / 10)
                if agent < 0:
                    link.set_channel(mbps)
                else:
                    await link.set_grants({agent: mbps})

        async def send(agent: int, tenths: int, mbit: float) -> float:
            await sleep_until(tenths / 10)
            assert await link.carry(agent, mbit * MBIT) == mbit * MBIT
            return now_s()

        async with asyncio.TaskGroup() as group:
            group.create_task(play())
            ends = [group.create_task(send(agent, *transfer)) for agent, transfer in enumerate(sent)]
        return [end.result() for end in ends]

    assert virtually(main) == pytest.approx(integrated(channel, grant, sent, changed), rel=1e-6)


def integrated(
    channel: float, grant: float, sent: list[tuple[int, float]], changed: list[tuple[int, int, float]]
) -> list[float]:
    """When each transfer ends."""
    grants, left = [grant] * 5, [mbit for _, mbit in sent]
    ends_s = [0.0] * len(sent)
    events_s = sorted({tenths / 10 for tenths, *_ in [*sent, *changed]})
    at_s, upcoming = 0.0, list(changed)
    while any(left):
        while upcoming and upcoming[0][0] / 10 <= at_s:
            _, agent, mbps = upcoming.pop(0)
            if agent < 0:
                channel = mbps
            else:
                grants[agent] = mbps
        sending = [a for a, mbit in enumerate(left) if mbit and sent[a][0] / 10 <= at_s]
        shares = dict(zip(sending, max_min_shares(channel, [grants[a] for a in sending]), strict=True))
        assert sum(shares.values()) <= channel * (1 + 1e-9)
        next_event_s = min((s for s in events_s if s > at_s), default=float("inf"))
        next_end_s = min((at_s + left[a] / shares[a] for a in sending), default=float("inf"))
        until_s = min(next_event_s, next_end_s)
        for a in sending:
            ends = at_s + left[a] / shares[a] <= until_s
            left[a] = 0.0 if ends else max(1e-12, left[a] - shares[a] * (until_s - at_s))
            ends_s[a] = until_s
        at_s = until_s
    return ends_s


@settings(deadline=None)
@given(st.lists(rates, min_size=2, max_size=6), rates)
def test_together_never_more_than_the_channel_and_nothing_is_wasted(grants: list[float], channel: float) -> None:
    """What was carried in a second, while everybody has more to send than that."""

    async def main() -> list[float]:
        link = FluidLink(channel, 1.0)
        await link.set_grants(dict(enumerate(grants)))
        stop: asyncio.Future[CloudStages] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_at(1.0, stop.set_result, CloudStages(0.0))
        async with asyncio.TaskGroup() as group:
            carried = [group.create_task(link.carry(agent, 200 * MBIT, stop)) for agent in range(len(grants))]
        return [each.result() / MBIT for each in carried]

    carried = virtually(main)
    assert carried == pytest.approx(max_min_shares(channel, grants))
    assert sum(carried) <= channel * (1 + 1e-6)
