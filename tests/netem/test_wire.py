"""What a payload costs on the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netem.wire import ideal_transfer_s, wire_bytes

SIZES = st.integers(0, 10**9)


def test_known_values() -> None:
    assert [wire_bytes(size) for size in (0, 1, 336, 1448, 1449, 2896)] == [0, 67, 402, 1514, 1581, 3028]
    assert ideal_transfer_s(1448, 1514 * 8 / 1e6) == pytest.approx(1.0)


@given(SIZES, SIZES)
def test_splitting_a_payload_never_saves(first: int, second: int) -> None:
    assert wire_bytes(first + second) <= wire_bytes(first) + wire_bytes(second)


@given(SIZES)
def test_overhead_is_one_header_for_each_segment(size: int) -> None:
    headers, rest = divmod(wire_bytes(size) - size, 66)
    assert rest == 0
    assert (headers - 1) * 1448 < size <= headers * 1448 or size == headers == 0


@given(SIZES, st.floats(0.001, 1e5))
def test_ideal_time_is_that_of_the_frames_up_to_one_header(size: int, rate_mbps: float) -> None:
    frames_s = wire_bytes(size) * 8 / (rate_mbps * 1e6)
    assert frames_s - 66 * 8 / (rate_mbps * 1e6) <= ideal_transfer_s(size, rate_mbps) * (1 + 1e-9)
    assert ideal_transfer_s(size, rate_mbps) <= frames_s * (1 + 1e-9)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        wire_bytes(-1)
    with pytest.raises(ValueError, match="positive"):
        ideal_transfer_s(1, 0)
